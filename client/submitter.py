"""``submit`` with options, and what a client says of itself and of its work."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gristmill.client.decompose import Decomposition
from gristmill.client.future import Future
from gristmill.client.options import Options

if TYPE_CHECKING:
    from gristmill.client.client import Client

_INFO = ("gristmill-", ".dist-info")


class Submitter:
    """``submit`` with options, made by ``Client.with_options``."""

    def __init__(self, client: "Client", options: Options) -> None:
        self._client = client
        self._options = options
        self._key = repr(sorted(options.items()))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """One call, as a future; see ``Client.submit``."""
        return self._client._submit(self._options, self._key, fn, args, kwargs)


def origin_of(source: Any) -> dict[str, Any]:
    """What a job's spec says of the decomposition that made its inputs."""
    if not isinstance(source, Decomposition):
        return {}
    return {"parent": source.job, "request_digest": source.request_digest}


def name_of(fn: Callable[..., Any]) -> str:
    """A function's name, for people."""
    return getattr(fn, "__name__", type(fn).__name__)


def own_version() -> str:
    """The release of this client, from the name of its ``gristmill-VERSION.dist-info``.

    ``importlib.metadata`` knows more places, and its import is a sixth of what a client imports.
    """
    for entry in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(entry or "."):
                if name.startswith(_INFO[0]) and name.endswith(_INFO[1]):
                    return name.removeprefix(_INFO[0]).removesuffix(_INFO[1])
    from importlib import metadata

    try:
        return metadata.version("gristmill")
    except metadata.PackageNotFoundError:
        return "unknown"
