# ruff: noqa: E501 - rows of a page are long
"""Writes docs/contracts.md from what the tests of contracts/ are held to (`make docs`).

Gas is of contracts/gas-snapshot, which a test compares with forge's; the search's size is what its
own test asserts; of mutants each is a test.
"""

import pathlib
import re
import sys
import tomllib

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import gas

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contracts.md"
SEARCH = ROOT / "contracts" / "test" / "RentalSearch.t.sol"
HEAD = """# The contracts

Written by `make docs`; do not edit. How they are deployed and looked at: [chain.md](chain.md); how they are used: [rentals.md](rentals.md).

| contract | what it is | who can do what harm |
|---|---|---|
| [ComputeRental](../contracts/src/ComputeRental.sol) | an escrow for each rental, cumulative vouchers, 97 % to the payee and 3 % to the fee wallet, disputes with an arbiter or with silence | [contracts/rental.md](contracts/rental.md) |
| [WorkPool](../contracts/src/WorkPool.sol) | pays workers: one Merkle root of cumulative earnings for each epoch, a window, a veto, a cap | [contracts/pool.md](contracts/pool.md) |
| [PromptMarketplace](../contracts/src/PromptMarketplace.sol) | a token for the hash of a prompt, sold at a fixed price, with royalties | [contracts/market.md](contracts/market.md) |
| [FeeWallet](../contracts/src/FeeWallet.sol) | the part of two of them: where the toll goes, behind a delay of two days | [contracts/rental.md](contracts/rental.md) |

Solidity 0.8.37 on OpenZeppelin 5.7, compiled by npm's solc; forge and anvil 1.7.1. `make contracts` installs these and runs everything below; the artifacts in
`contracts/artifacts` are compiled again and compared byte for byte.

"""


def mutants() -> dict[str, int]:
    """How many bugs are planted in each source."""
    found: dict[str, int] = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*_mutants.toml")):
        for mutant in tomllib.loads(path.read_text())["mutant"]:
            name = pathlib.PurePath(mutant["file"]).stem
            found[name] = found.get(name, 0) + 1
    return found


def searched(name: str) -> int:
    """A figure that the search's own test asserts."""
    found = re.search(rf"constant {name} = ([0-9_]+);", SEARCH.read_text())
    assert found is not None, name
    return int(found[1].replace("_", ""))


def render() -> str:
    """The page."""
    planted = mutants()
    rows = "".join(f"| {name} | {planted[name]} | {planted[name]} |\n" for name in sorted(planted))
    return (
        f"{HEAD}## What the tests are held to\n\n"
        "- **Branches**: at least 95 % of each file by unit and fuzz tests alone "
        "(`tests/contracts/test_forge.py` prints them; 100 % of all four when this was written).\n"
        f"- **Every state**: from each of the {searched('STATES'):,} states that a rental can "
        f"reach ({searched('TRANSITIONS'):,} transitions: every move by every actor at every moment"
        " that matters)\n  an outsider alone brings all the money to its owners, with client, "
        "provider and arbiter absent for ever, and each move did what a second statement of the "
        "rules says\n  (`RentalSearch.t.sol`; the size is asserted).\n"
        "- **Planted bugs**: each is found by the tests of its contract "
        "(`tests/contracts/test_mutants.py`).\n\n"
        f"| source | bugs planted | found |\n|---|--:|--:|\n{rows}\n"
        "## Gas\n\n"
        "Of a receipt: 21,000 for the transaction, calldata, execution, less what is refunded. "
        "A root costs the same whatever the number of workers and subtasks under it.\n\n"
        f"{gas.table(gas.written())}"
    )


def main(arguments: list[str]) -> int:
    """Writes the page, or with --check says whether it is current; returns an exit code."""
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text() == render():
            return 0
        print("docs/contracts.md is out of date: run 'make docs'", file=sys.stderr)
        return 1
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
