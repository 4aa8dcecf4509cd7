"""Each message of each dialogue has one line in its RFC that says why it is safe to lose.

The acknowledgements that a line names are messages of the same dialogue.
"""

import pathlib
import re
import types
import typing

import pytest

from gristmill.wire import chain, client, enrolment, ledger, payments, registry, worker

ROOT = pathlib.Path(__file__).parents[2]
TITLE = "Lost, late and repeated messages"
NAME = re.compile(r"`([A-Z]\w+)`")
DIALOGUES = [
    ("0001-worker-dialogue.md", worker.WorkerMessage, worker.BrokerToWorker),
    ("0002-client-dialogue.md", client.ClientMessage, client.BrokerToClient),
    ("0003-ledger-dialogue.md", ledger.ToLedger, ledger.FromLedger),
    (
        "0005-registry-dialogue.md",
        registry.ToRegistry | enrolment.ToEnrolment,
        registry.FromRegistry | enrolment.FromEnrolment,
    ),
]


def rows(page: str) -> list[list[str]]:
    """The cells of the table's lines, without its head."""
    _, found, section = page.partition(f"{TITLE}\n")
    assert found, f"no section {TITLE!r}"
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def faults(page: str, there: types.UnionType, here: types.UnionType) -> list[str]:
    """What the table of a page lacks, has too often, or names that is no message."""
    asked, answered = ({one.__name__ for one in typing.get_args(way)} for way in (there, here))
    told: list[str] = []
    found = []
    for row in rows(page):
        names = NAME.findall(row[0])
        if len(names) != 1 or len(row) != 5 or not all(row):
            told.append(f"not a line of five cells that begins with a message: {row[0]}")
            continue
        (name,) = names
        found.append(name)
        others = answered if name in asked else asked
        acks = NAME.findall(row[1])
        if not acks and row[1] != "none":
            told.append(f"{name}: acknowledged by what?")
        told += [f"{name}: {ack} does not come the other way" for ack in acks if ack not in others]
    told += [f"{name}: {found.count(name)} lines" for name in {*found} if found.count(name) > 1]
    told += [f"{name}: no line" for name in (asked | answered) - {*found}]
    told += [f"{name}: no such message" for name in {*found} - (asked | answered)]
    return sorted(told)


@pytest.mark.parametrize(("page", "there", "here"), DIALOGUES, ids=lambda one: str(one)[:4])
def test_every_message_has_its_line(
    page: str, there: types.UnionType, here: types.UnionType
) -> None:
    assert faults((ROOT / "docs" / "rfc" / page).read_text(), there, here) == []


def test_every_message_class_is_one_of_a_dialogue() -> None:
    """A new struct that is tagged as a message and in no union would have no line."""
    of: list[list[types.ModuleType]] = [
        [worker],
        [client],
        [ledger, payments, chain],
        [registry, enrolment],
    ]
    for modules, (_, there, here) in zip(of, DIALOGUES, strict=True):
        classes = {
            one
            for module in modules
            for one in vars(module).values()
            if isinstance(one, type) and issubclass(one, module.Message) and one != module.Message
        }
        assert classes == {*typing.get_args(there), *typing.get_args(here)}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("\n| `Ping` |", "\n| `Pang` |", "Ping: no line"),
        ("\n| `Acked` |", "\n| `Ping` |", "Ping: 2 lines"),
        ("| `LedgerAnswer`, `LedgerRefused` |", "| `Post` |", "Post does not come the other way"),
        ("| `Acked`, `LedgerRefused` |", "| something |", "acknowledged by what?"),
    ],
)
def test_what_is_missing_twice_or_no_message_is_found(old: str, new: str, fault: str) -> None:
    name, there, here = DIALOGUES[2]
    page = (ROOT / "docs" / "rfc" / name).read_text()
    assert old in page
    assert any(fault in told for told in faults(page.replace(old, new, 1), there, here))
