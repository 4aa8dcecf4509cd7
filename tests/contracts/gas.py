"""What each operation costs who sends it, as contracts/gas-snapshot has it.

    .venv/bin/python tests/contracts/gas.py            what has changed; 1 if something has
    .venv/bin/python tests/contracts/gas.py --renew    write contracts/gas-snapshot
    .venv/bin/python tests/contracts/gas.py --table    it as a table for a page

Figures are those of a receipt: 21,000 for the transaction, calldata, execution, less what is
refunded. The compiler, its settings and OpenZeppelin are pinned, so they are the same everywhere.
"""

import argparse
import shutil
import sys

import forge_rig

FILE = forge_rig.FOLDER / "gas-snapshot"
RENEW = ".venv/bin/python tests/contracts/gas.py --renew"
#: of a contract that tests of gas are in
TESTS = "GasTest"


def measured() -> dict[str, int]:
    """By ``contract: operation``. RuntimeError: a test of gas failed, or none was found."""
    shutil.rmtree(forge_rig.FOLDER / "out" / "tests" / "snapshots", ignore_errors=True)
    # Not as JSON: then forge keeps no snapshots.
    run = forge_rig.forge("tests", "test", "--isolate", "--match-contract", TESTS)
    noted = forge_rig.snapshots("tests")
    if run.returncode or not noted:
        raise RuntimeError(f"tests of gas failed: {(run.stdout + run.stderr)[-2000:]}")
    return noted


def written() -> dict[str, int]:
    """The same from the file."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    return {name: int(gas) for gas, name in (line.split(None, 1) for line in lines)}


def text(gas: dict[str, int]) -> str:
    """The file: a line for each operation."""
    return "".join(f"{gas[name]:>9} {name}\n" for name in sorted(gas))


def table(gas: dict[str, int]) -> str:
    """Markdown."""
    rows = ["| contract | operation | gas |", "| --- | --- | ---: |"]
    for name in sorted(gas):
        contract, _, operation = name.partition(": ")
        rows.append(f"| {contract} | {operation} | {gas[name]:,} |")
    return "\n".join(rows) + "\n"


def changes(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """One line for each operation that is new, gone, dearer or cheaper."""
    said = []
    for name in sorted(before | after):
        old, new = before.get(name), after.get(name)
        if old is None:
            said.append(f"{name}: new, {new:,}")
        elif new is None:
            said.append(f"{name}: gone, it was {old:,}")
        elif old != new:
            said.append(f"{name}: {old:,} -> {new:,} ({new - old:+,})")
    return said


def main(arguments: list[str]) -> int:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(description="Gas of each operation")
    parser.add_argument("--renew", action="store_true", help="write contracts/gas-snapshot")
    parser.add_argument("--table", action="store_true", help="show it for a page")
    given = parser.parse_args(arguments)
    if given.table:
        print(table(written()), end="")
        return 0
    if lack := forge_rig.missing():
        print(f"gas.py: {lack}", file=sys.stderr)
        return 2
    after = measured()
    said = changes(written(), after)
    print("\n".join(said) or "nothing has changed")
    if given.renew:
        FILE.write_text(text(after))
        return 0
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
