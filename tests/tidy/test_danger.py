"""No code of ours runs, unpickles, looks up or formats what came from elsewhere.

What the rules (danger_rules.py) do not see: an alias that is made at run time (``f = eval``), a
name that is built (``sys.modules[x]``), and libraries. For those there are the import law, the
audit hook of the processes (tests/integration/processes) and pickles in every field of the wire
(tests/chaos/sockets/test_pickles.py).
"""

import pathlib

import pytest
from danger_rules import RULES, Found, findings

SERVERS = ("broker", "ledger", "sandbox", "store", "wire")
#: which rules a room must keep, where not all: clients and workers may pickle (docs/trust.md), and
#: what a person typed may name an option
LEFT_OUT = {"worker": {"pool"}, "client": {"pool"}, "cli": {"attribute by name"}}

#: (file, rule, function) to why it is right there
ALLOWED = {
    ("broker/__main__.py", "attribute by name", "_serve"): "options, from a list in the text",
    ("broker/core/invariants.py", "attribute by name", "_check_indices"): "indices in the text",
    (
        "broker/core/on_clients.py", "attribute by name", "_first_difference"
    ): "reads what both structs of one type have, to tell how they differ",
    ("broker/front.py", "attribute by name", "Front.__init__"): "handlers, from the table of verbs",
    ("ledger/intent_rows.py", "attribute by name", "write"): "columns, from a list in the text",
    ("ledger/purchases.py", "attribute by name", "wrong_text"): "reads the fields of a struct",
    ("store/settings.py", "attribute by name", "read_settings"): "options, from a list in the text",
    ("wire/process.py", "format from elsewhere", "_Lines.format"): "of the base class, a log line",
    ("wire/proofs.py", "attribute by name", "_check_amounts"): "fields, from a list in the text",
    ("wire/tariffs.py", "attribute by name", "_parse_rates"): "reads the fields of a struct",
    ("sandbox/limits.py", "attribute by name", "Limits.__post_init__"): "its own fields",
    ("worker/runners/boot.py", "pickle", "main"): "in a jail, of the tenant whose pickle it is",
    ("worker/runners/encode.py", "pickle", ""): "in a jail",
    ("worker/runners/encode.py", "pickle", "pickle_all"): "in a jail",
    ("worker/runners/shelf.py", "pickle", ""): "in a jail",
    ("worker/runners/zygote.py", "pickle", ""): "in a jail",
    ("client/client.py", "pickle", ""): "of a fleet that is trusted (docs/trust.md)",
    ("client/pickling.py", "pickle", ""): "what the caller gave",
    ("client/sharing.py", "pickle", ""): "what the caller asks for by name",
    ("client/future.py", "look-up by name", "Future.__getattr__"): "three names, from a list",
    ("client/jobs.py", "attribute by name", "describe"): "columns, from a list in the text",
    (
        "client/decompose/suite.py", "archive unpacked", "Pytest.prepare.split"
    ): "in a jail, with the filter of the standard library",
    (
        "client/decompose/suite.py", "archive unpacked", "make_test_runner.run_test_file"
    ): "in a jail, with the filter of the standard library",
    ("cli/main.py", "look-up by name", "run"): "modules of verbs, from the parser's own table",
}  # fmt: skip

#: a planted example of each kind, and the rule that must find it; several where there are ways
PLANTED = [
    ("pickle", "import pickle"),
    ("pickle", "def f(x):\n    import marshal as m\n    return m.loads(x)"),
    ("pickle", "from cloudpickle import loads as open_it"),
    ("pickle", "def f(socket):\n    return socket.recv_pyobj()"),
    ("pickle", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    ("pickle", "def f(n, is_safe):\n    n.load('x', allow_pickle=is_safe)"),
    ("pickle", "from pandas import read_pickle as r\nr('x')"),
    ("pool", "import multiprocessing.connection"),
    ("pool", "from concurrent.futures import ProcessPoolExecutor"),
    ("text as code", "def f(m):\n    return eval(m.text)"),
    ("text as code", "def f(m):\n    exec(m)"),
    ("text as code", "import builtins as b\nb.eval('1')"),
    ("text as code", "from builtins import exec as run\nrun('1')"),
    ("text as code", "def f(m):\n    return __import__(m.kind)"),
    ("text as code", "def f(m):\n    return compile(m, '', 'exec')"),
    ("text to a shell", "import subprocess as s\ns.run('ls ' + x, shell=True)"),
    ("text to a shell", "import os\nos.system('ls')"),
    ("text to a shell", "from os import popen as p\np('ls')"),
    ("attribute by name", "class A:\n    def on(self, m):\n        getattr(self, m.kind)(m)"),
    ("attribute by name", "def f(o, m):\n    return getattr(o, f'on_{m.tag}', None)"),
    ("attribute by name", "def f(o, m):\n    setattr(o, m.name, m.value)"),
    ("attribute by name", "from operator import methodcaller as c\nc(name)(1)"),
    ("attribute by name", "def f(o, m):\n    return object.__getattribute__(o, m.name)"),
    ("look-up by name", "def f(m):\n    return globals()[m.verb](m)"),
    ("look-up by name", "def f(m):\n    return globals().get(m.verb)"),
    ("look-up by name", "def f(m):\n    return vars(m.owner)[m.verb]"),
    ("look-up by name", "def f(o, m):\n    return o.__dict__[m.verb]"),
    ("look-up by name", "import importlib as i\ni.import_module(x)"),
    ("format from elsewhere", "def f(m):\n    return m.text.format(m)"),
    ("format from elsewhere", "def f(m):\n    return (m.text + '{x}').format_map(m.all)"),
    ("archive unpacked", "import tarfile\ntarfile.open('x').extractall('y')"),
    ("archive unpacked", "import shutil\nshutil.unpack_archive('x', 'y')"),
    ("yaml", "import yaml"),
]

#: what looks alike and is no danger
HARMLESS = [
    "import json\njson.loads('1')",
    "def f(o):\n    return getattr(o, 'request', 0)",
    "import numpy\nnumpy.load('x', allow_pickle=False)",
    "import subprocess\nsubprocess.run(['ls'], shell=False)",
    "import re\nre.compile('x')",
    "def f(s):\n    return ''.join(s.format())",
    "'{} of {}'.format(1, 2)",
    "def f(d, m):\n    return d[m.verb]",
    "import importlib\nimportlib.import_module('gristmill.cli.up')",
    "from operator import attrgetter\nattrgetter('name')",
]


def found_in(root: pathlib.Path, room: str) -> dict[tuple[str, str, str], list[int]]:
    found: dict[tuple[str, str, str], list[int]] = {}
    for path in sorted((root / room).rglob("*.py")):
        for one in findings(path.read_text()):
            if one.rule not in LEFT_OUT.get(room, ()):
                at = (str(path.relative_to(root)), one.rule, one.where)
                found.setdefault(at, []).append(one.line)
    return found


def test_rooms_keep_the_rules(root: pathlib.Path, rooms: list[str]) -> None:
    assert set(SERVERS) | set(LEFT_OUT) <= set(rooms)
    found = {at: lines for room in rooms for at, lines in found_in(root, room).items()}
    assert not {at: lines for at, lines in found.items() if at not in ALLOWED}
    assert not set(ALLOWED) - set(found), "allowed, and no longer there"


def test_servers_have_no_pickle_at_all() -> None:
    assert not [at for at in ALLOWED if at[0].split("/")[0] in SERVERS and at[1] == "pickle"]


@pytest.mark.parametrize(("rule", "text"), PLANTED)
def test_a_planted_example_is_found(rule: str, text: str) -> None:
    assert rule in [one.rule for one in findings(text)]


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, _ in PLANTED} == set(RULES)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_looks_alike_is_left_alone(text: str) -> None:
    assert list(findings(text)) == []


def test_where_it_stands_is_told() -> None:
    text = "class A:\n    def f(self):\n        def g(x):\n            eval(x)\n        exec('')\n"
    assert list(findings(text)) == [
        Found("text as code", 4, "A.f.g"),
        Found("text as code", 5, "A.f"),
    ]
