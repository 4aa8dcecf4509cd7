"""What work costs on each class of nodes: rates, their bounds, and how an operator writes them.

A node's class is its label ``class``, ``standard`` when it has none. A job keeps the tariffs of the
time at which it was accepted; on a class that came later it costs what ``standard`` did.
"""

import re
from collections.abc import Iterable, Mapping

from gristmill.wire.errors import RemoteError
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.spec import ZERO_TARIFF, Tariff
from gristmill.wire.units import UCREDITS_PER_CREDIT, format_credits, parse_credits

CLASS_LABEL = "class"
STANDARD = "standard"  #: the class of a node without that label
STANDARD_TARIFF = Tariff(UCREDITS_PER_CREDIT, 10, UCREDITS_PER_CREDIT // 20)
RATE_UCREDITS_MAX = 1_000_000 * UCREDITS_PER_CREDIT  #: for a second, a GiB-second, a subtask
CLASSES_MAX = 32

Tariffs = dict[str, Tariff]  #: class of nodes to its tariff; ``standard`` is always there
ZERO_TARIFFS: Tariffs = {STANDARD: ZERO_TARIFF}

_FIELDS = {
    "cpu": "cpu_second_ucredits",
    "gib": "gib_second_ucredits",
    "subtask": "subtask_ucredits",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HINT = "write it as --tariff standard=cpu:1,gib:0.05,subtask:0.00001 (credits)"


def class_of(labels: Mapping[str, str]) -> str:
    """The class of a node with these labels.

    >>> class_of({"class": "big"}), class_of({"zone": "a"})
    ('big', 'standard')
    """
    return labels.get(CLASS_LABEL, STANDARD)


def tariff_of(tariffs: Tariffs, node_class: str) -> Tariff:
    """What work costs on nodes of a class."""
    return tariffs.get(node_class) or tariffs[STANDARD]


def parse_tariffs(texts: Iterable[str]) -> Tariffs:
    """The tariffs that an operator names; ``standard`` has its defaults if it is not named.

    A rate that a text leaves out is that of ``standard`` by default.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every bad class and rate with its bounds.

    >>> parse_tariffs(["big=cpu:2.5"])["big"]
    Tariff(cpu_second_ucredits=2500000, subtask_ucredits=10, gib_second_ucredits=50000)
    """
    tariffs, bad = {STANDARD: STANDARD_TARIFF}, list[str]()
    named = set()
    for text in texts:
        name, _, rates = text.partition("=")
        if name in named:
            bad.append(f"class {name!r} has two tariffs")
        elif not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
            bad.append(
                f"{name!r:.80} is no name of a class: letters, digits, '.', '_' and '-', at most"
                f" {NAME_CHARS_MAX}"
            )
        else:
            named.add(name)
            tariffs[name] = _parse_rates(name, rates, bad)
    if len(tariffs) > CLASSES_MAX:
        bad.append(f"{len(tariffs)} classes; at most {CLASSES_MAX}")
    if bad:
        raise RemoteError("INVALID_SPEC", "tariff: " + "; ".join(bad), _HINT)
    return tariffs


def _parse_rates(name: str, text: str, bad: list[str]) -> Tariff:
    rates = {field: getattr(STANDARD_TARIFF, field) for field in STANDARD_TARIFF.__struct_fields__}
    seen = set()
    for part in text.split(","):
        key, _, amount = part.strip().partition(":")
        field = _FIELDS.get(key)
        if field is None or key in seen:
            why = "is there twice" if field else f"is none of {', '.join(_FIELDS)}"
            bad.append(f"rate {part!r:.60} of class {name} {why}")
            continue
        seen.add(key)
        try:
            rates[field] = parse_credits(amount)
        except ValueError as error:
            bad.append(f"rate {key} of class {name}: {error}, with at most 6 decimals")
            continue
        if rates[field] > RATE_UCREDITS_MAX:
            bad.append(
                f"rate {key} of class {name} is {format_credits(rates[field])} credits, must be 0"
                f" to {format_credits(RATE_UCREDITS_MAX)}"
            )
    return Tariff(**rates)


def check_class(labels: Mapping[str, str], tariffs: Tariffs) -> None:
    """Refuses a node whose class has no tariff.

    Raises:
        RemoteError: ``UNKNOWN_CLASS`` that names the known ones.
    """
    node_class = class_of(labels)
    if node_class not in tariffs:
        raise RemoteError(
            "UNKNOWN_CLASS",
            f"the node's class is {node_class!r:.80}; this grid has tariffs for"
            f" {', '.join(sorted(tariffs))}",
        )
