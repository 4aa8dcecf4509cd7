"""Units as people write them and as the wire carries them: bytes, milliseconds, micro-credits.

On the wire and in every struct a quantity is an integer in the unit that ends its name.
"""

import math
import re

UCREDITS_PER_CREDIT = 1_000_000  #: money is counted in integer micro-credits
UCREDITS_MAX = 1 << 60  #: in one amount

_BYTES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_bytes(text: str | int) -> int:
    """Bytes from ``512M``, ``1.5GiB``, ``64 KB`` or a plain number.

    K, M, G, T are powers of 1024.

    Raises:
        ValueError: the text is not a size; the message shows what is accepted.

    >>> parse_bytes("64K"), parse_bytes("1.5GiB"), parse_bytes(7)
    (65536, 1610612736, 7)
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as 512M, 64K or 1.5G")
    return _whole(text, float(match[1]) * _BYTES[match[2]])


def _whole(text: str, number: float) -> int:
    if number == math.inf:
        raise ValueError(f"{text!r:.40}... is too large")
    return int(number)


def parse_ms(text: str | int | float) -> int:
    """Milliseconds from ``90s``, ``5m``, ``1.5h``, ``250ms``; a plain number is seconds.

    Raises:
        ValueError: the text is not a duration; the message shows what is accepted.

    >>> parse_ms("5m"), parse_ms("250ms"), parse_ms(2)
    (300000, 250, 2000)
    """
    if isinstance(text, int | float):
        return int(text * 1000)
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|h|d)?\s*", text.lower())
    if not match:
        raise ValueError(f"{text!r} is not a duration; write it as 90s, 5m, 250ms or 1.5h")
    return _whole(text, float(match[1]) * _MS[match[2] or "s"])


def parse_credits(text: str | int | float) -> int:
    """Micro-credits from credits as people write them: ``2.5`` is 2,500,000.

    Raises:
        ValueError: the text is no amount, has more than six decimals, or is too large.

    >>> parse_credits("2.5")
    2500000
    """
    if isinstance(text, int):
        return text * UCREDITS_PER_CREDIT
    match = re.fullmatch(r"\s*([0-9]+)(?:\.([0-9]{0,6}))?\s*", str(text))
    if not match:
        raise ValueError(f"{text!r:.80} is not an amount of credits; write it as 12 or 0.25")
    digits = (match[1] + (match[2] or "").ljust(6, "0")).lstrip("0") or "0"
    if len(digits) > len(str(UCREDITS_MAX)) or int(digits) > UCREDITS_MAX:
        raise ValueError(f"{text!r:.80} is more than {format_credits(UCREDITS_MAX)} credits")
    return int(digits)


def format_bytes(n: int) -> str:
    """Bytes for a person.

    >>> format_bytes(999), format_bytes(65536), format_bytes(1610612736)
    ('999 B', '64 KiB', '1.5 GiB')
    """
    size = float(n)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def format_credits(ucredits: int) -> str:
    """Micro-credits for a person, exact to the micro-credit and without trailing zeros.

    >>> format_credits(2500000), format_credits(-10), format_credits(0)
    ('2.5', '-0.00001', '0')
    """
    sign, n = ("-" if ucredits < 0 else ""), abs(ucredits)
    whole, part = divmod(n, UCREDITS_PER_CREDIT)
    text = f"{whole:,}" + (f".{part:06d}".rstrip("0") if part else "")
    return sign + text


def format_ms(ms: float) -> str:
    """A duration for a person.

    >>> format_ms(0.25), format_ms(1500), format_ms(125_000), format_ms(3_725_000)
    ('0.25 ms', '1.5 s', '2 min 5 s', '1 h 2 min')
    >>> format_ms(48 * 3_600_000), format_ms(7 * 86_400_000 - 1)
    ('2 d 0 h', '6 d 23 h')
    """
    if ms < 1000:
        return f"{ms:.3g} ms"
    if ms < 60_000:
        return f"{ms / 1000:.3g} s"
    minutes, rest = divmod(int(ms / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
