"""Rows A15 and A06 as a person proves them: files that stand alone, and bills that are receipts."""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

from grid_rig import gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.keys import BROKER_KEY, LEDGER_KEY, load_key

VERIFIER = pathlib.Path(__file__).parents[2] / "examples" / "verify_receipt.py"
SOON = {"ledger": ["--epoch-s", "1"]}


def flaky(x: int) -> int:
    import os

    if os.urandom(1)[0] < 60:
        raise RuntimeError("again")
    return x


def public(path: pathlib.Path) -> str:
    return load_key(path).verify_key.encode().hex()


def third_party(file: pathlib.Path, *trusted: str) -> subprocess.CompletedProcess[str]:
    """The verifier that shares no code with us, where none of ours can be imported."""
    return subprocess.run(
        [sys.executable, "-I", VERIFIER, file, *trusted],
        cwd=file.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a15_receipts_are_charges_and_anybody_can_prove_it(
    own_grid: Callable[..., Grid], tmp_path: pathlib.Path
) -> None:
    grid = own_grid(workers=2, options=SOON)
    with Client(grid.address) as client:
        assert sorted(client.map(flaky, range(200), retries=50, tier="batch", window=20)) == list(
            range(200)
        )
        (job,) = (status.job for status in client.jobs())
        other = gristmill(grid, "submit", "--wait", "--", "sh", "-c", "exit 3")
        assert other.returncode == 1
        failed = client.jobs(1)[0].job
        for each in (job, failed):
            proved = gristmill(grid, "audit", "prove", f"j{each}", "--wait")
            assert proved.returncode == 0, proved.stdout + proved.stderr
        status, bill = client.status(job), client.usage(job=job)
    file = tmp_path / "job.receipts"
    assert gristmill(grid, "receipt", f"j{job}", "-o", str(file)).returncode == 0
    document = json.loads(file.read_text())
    brokers = [receipt["broker"] for receipt in document["receipts"]]
    units = [
        (one["replica"], one["attempt"], index)
        for one in brokers
        for index in range(one["first"], one["first"] + one["count"])
    ]
    assert len(units) == len(set(units)) == 200 + status.retried, "one for each accepted attempt"
    amount = sum(one["amount_ucredits"] for one in brokers)
    assert amount == sum(row.amount_ucredits for row in bill) == status.spent_ucredits > 0
    ledger, broker = public(grid.state / "ledger" / LEDGER_KEY), find_broker_key(grid)
    good = gristmill(
        grid, "verify", str(file), "--key", f"ledger={ledger}", "--key", f"broker={broker}"
    )
    assert good.returncode == 0 and good.stdout.count("(trusted)") == 2, good.stdout
    theirs = third_party(file, ledger)
    assert theirs.returncode == 0, theirs.stderr
    told = f"{amount // 10**6}.{amount % 10**6:06} credits"
    assert theirs.stdout == f"{len(brokers)} receipts of j{job}, {told}: all proven\n"
    stranger = "ab" * 32
    assert third_party(file, stranger).returncode == 1
    bad = gristmill(grid, "verify", str(file), "--key", f"ledger={stranger}")
    assert bad.returncode == 1 and "keys[0].public" in bad.stdout
    whole = file.read_text()
    for field in ("amount_ucredits", "outcome_digest", "first", "metering", "root", "from_ms"):
        value = re.search(rf'"{field}": "?(\w)', whole)
        assert value
        lie = "1" if value[1] != "1" else "2"
        file.write_text(whole[: value.start(1)] + lie + whole[value.end(1) :])
        told = gristmill(grid, "verify", str(file))
        assert told.returncode == 1 and f".{field}: " in told.stdout, (field, told.stdout)
        assert third_party(file).returncode == 1, field


def find_broker_key(grid: Grid) -> str:
    (found,) = grid.state.rglob(BROKER_KEY)
    return public(found)


def test_a15_a_receipt_of_one_subtask_and_of_none(
    own_grid: Callable[..., Grid], tmp_path: pathlib.Path
) -> None:
    grid = own_grid(options=SOON)
    with Client(grid.address) as client:
        assert sum(client.map(abs, range(-50, 0), tier="batch", window=5)) == 1_275
        (job,) = (status.job for status in client.jobs())
        one = gristmill(grid, "receipt", f"j{job}/7", "--wait")
        assert one.returncode == 0
        ranges = [
            (receipt["broker"]["first"], receipt["broker"]["count"])
            for receipt in json.loads(one.stdout)["receipts"]
        ]
        assert len(ranges) == 1 and ranges[0][0] <= 7 < sum(ranges[0])
        none = gristmill(grid, "receipt", f"j{job}/50")
        assert none.returncode == 2 and "has 50 subtasks" in none.stderr
        unknown = gristmill(grid, "audit", "prove", "j99")
        assert unknown.returncode != 0 and "UNKNOWN_JOB" in unknown.stderr


def test_a06_no_receipt_is_lost_while_the_ledger_is_away(own_grid: Callable[..., Grid]) -> None:
    grid = own_grid(workers=2, options=SOON)
    with Client(grid.address) as client:
        stream = client.map(abs, range(3_000), tier="batch", window=500)
        first = next(stream)
        grid.kill("ledger")
        assert [first, *stream] == list(range(3_000)), "held jobs run on"
        job = client.jobs(1)[0].job
        assert client.grid()["outbox"] > 0
        grid.restart("ledger")
        until("the spool arrived", lambda: is_tallied(client, 3_000))
        proved = gristmill(grid, "audit", "prove", f"j{job}", "--wait")
        assert proved.returncode == 0, proved.stdout + proved.stderr


def is_tallied(client: Client, subtasks: int) -> bool:
    try:
        return sum(row.subtasks for row in client.usage()) == subtasks
    except GridError as error:
        assert error.code == "LEDGER_DOWN", error
        return False


def test_a15_the_third_party_shares_no_code_with_us() -> None:
    text = VERIFIER.read_text()
    assert len(text.splitlines()) < 200
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported == {"hashlib", "json", "sys", "typing", "nacl"}
