"""Paths that others choose: what may be put behind a folder's own."""

from gristmill.wire.limits import PATH_BYTES_MAX, PATH_DEPTH_MAX, PATH_PART_BYTES_MAX


def is_below(path: str) -> bool:
    """Whether this names a file below a folder, in a way that every kernel takes.

    No part is empty, ``.`` or ``..``; none, nor all of it, is longer or deeper than may be.

    >>> is_below("a/b.txt"), is_below("../b.txt"), is_below("/b.txt"), is_below("a//b.txt")
    (True, False, False, False)
    """
    parts = path.split("/")
    return (
        "\0" not in path
        and len(parts) <= PATH_DEPTH_MAX
        and len(path.encode(errors="surrogatepass")) <= PATH_BYTES_MAX
        and all(
            part not in ("", ".", "..")
            and len(part.encode(errors="surrogatepass")) <= PATH_PART_BYTES_MAX
            for part in parts
        )
    )
