"""``lines``: a text file to one subtask for each line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Lines:
    """Lines of a text.

    Arguments: ``path``, or ``text`` itself; ``blank``: keep blank lines; ``comment``: skip lines
    that begin with it. The input is the line without its end, the id its number from 1.
    """

    name = "lines"
    version = 1

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], list[list[Any]]], Any]:
        """See ``Decomposer``."""
        rest = {**arguments}
        path, text = rest.pop("path", None), rest.pop("text", None)
        if (path is None) == (text is None):
            raise ValueError("give path or text")
        body = Path(path).read_bytes() if path is not None else str(text).encode()
        value = [body, bool(rest.pop("blank", False)), str(rest.pop("comment", ""))]
        if rest:
            raise TypeError(f"no argument {', '.join(rest)}; there are path, text, blank, comment")

        def split(value: Any) -> list[list[Any]]:
            body, keeps_blank, comment = value
            pairs = []
            for number, line in enumerate(body.decode().splitlines(), 1):
                if (line.strip() or keeps_blank) and not (comment and line.startswith(comment)):
                    pairs.append([str(number), line])
            return pairs

        return split, value
