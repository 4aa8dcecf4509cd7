"""``glob``: the files of a folder that match a pattern, one subtask each."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Glob:
    """Files below a folder.

    Arguments: ``pattern`` (or a list), as in ``**/*.py``; ``root``, by default the working
    folder; ``absolute``: inputs are full paths, True by default. The id is the path below root.

    The names are listed where the client is; which of them match is decided in the jail. A jail
    sees none of these files: ``gristmill submit --from glob`` sends each with its subtask, and a
    program sends contents, as in ``client.map(fn, map(read, found))``.
    """

    name = "glob"
    version = 1

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], list[list[Any]]], Any]:
        """See ``Decomposer``."""
        rest = {**arguments}
        patterns, root = rest.pop("pattern"), Path(rest.pop("root", "."))
        is_absolute = bool(rest.pop("absolute", True))
        if rest:
            raise TypeError(f"no argument {', '.join(rest)}; there are pattern, root, absolute")
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder")
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        names = []
        for folder, folders, files in os.walk(root):
            folders.sort()
            below = os.path.relpath(folder, root)
            names += [os.path.normpath(os.path.join(below, name)) for name in files]
        value = [patterns, os.path.realpath(root) if is_absolute else "", sorted(names)]

        def split(value: Any) -> list[list[Any]]:
            import re

            patterns, root, names = value

            def translate(pattern: str) -> str:
                text = ""
                for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", pattern):
                    if part == "**/":
                        text += "(?:.*/)?"
                    elif part == "**":
                        text += ".*"
                    elif part == "*":
                        text += "[^/]*"
                    elif part == "?":
                        text += "[^/]"
                    elif part.startswith("[") and part.endswith("]"):
                        text += part.replace("[!", "[^")
                    else:
                        text += re.escape(part)
                return text

            match = re.compile("|".join(f"(?:{translate(one)})" for one in patterns)).fullmatch
            return [[name, f"{root}/{name}" if root else name] for name in names if match(name)]

        return split, value
