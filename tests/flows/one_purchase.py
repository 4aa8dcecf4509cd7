"""Writes docs/one-purchase.md: a Lightning payment, credits, a job, its receipts; all of it real.

``python -P tests/flows/one_purchase.py`` writes the page; tests/flows/test_one_purchase.py makes it
again and compares what does not change from run to run.
"""

import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "rig"))

from grid_rig import gristmill, until  # noqa: E402
from lightning_rig import LightningRig, lightning_rig  # noqa: E402

from gristmill.cli.grid import Grid  # noqa: E402

PAGE = ROOT / "docs" / "one-purchase.md"
HEAD = """# One purchase, from a Lightning payment to a proven job

Made by `tests/flows/one_purchase.py`: a grid with a treasury, and
[two real Lightning nodes](../tests/rig/lightning/server.mjs) (LDK) with a channel, behind LND's
REST. The payee's node is not LND, and the chain below the channel is made by the test. Ids, keys
and times are those of one run; a test makes the page again and compares the rest.

"""
#: what differs from run to run
CHANGING = re.compile(
    r"pi[0-9a-f]{18}|[0-9a-f]{12,}|lnbcrt\w+|\b\d[\d,.]* ?(ms|s|min|h)\b(?: \d+ (?:min|s))?"
    r"|/\S*/j1\.receipts|\b\d[\d,.]*\b"
)


def log_of(lightning: LightningRig, folder: pathlib.Path) -> str:
    """What was typed and what it said."""
    macaroon = folder / "macaroon"
    macaroon.touch(mode=0o600)
    macaroon.write_bytes(bytes.fromhex(lightning.macaroon))
    config = folder / "payments.toml"
    config.write_text(
        f'[lnd]\nurl = "{lightning.url}"\nmacaroon_file = "{macaroon}"\nfee_ppm = 5000\n'
    )
    parts: list[str] = []

    with Grid.temporary(
        workers=1, slots=1, payments=str(config), fund="",
        options={"treasury": ["--reconcile-s", "0.5"], "ledger": ["--epoch-s", "1"]},
    ) as grid:  # fmt: skip

        def run(told: str, *arguments: str) -> str:
            done = gristmill(grid, *arguments)
            assert done.returncode == 0, (arguments, done.stdout, done.stderr)
            lines = (done.stderr + done.stdout).replace(str(folder), "/tmp").splitlines()
            # whether there was anything to wait for is a matter of time
            said = "\n".join(each for each in lines if not each.startswith("waiting for"))
            line = " ".join(arguments).replace(str(folder), "/tmp")
            parts.append(f"{told}\n\n```text\n$ gristmill {line}\n{said}\n```\n")
            return done.stdout

        run("What is sold.", "credits", "offers")
        bought = run(
            "The price is shown, the intent is on disk, then comes what is to be paid, signed.",
            *("credits", "buy", "10", "--with", "lnd", "--yes", "--key", "order-7"),
        )
        (intent,) = set(re.findall(r"pi[0-9a-f]{18}", bought))
        (bolt11,) = re.findall(r"lnbcrt\w+", bought)
        preimage = lightning.pay(bolt11)
        parts.append(
            "The payer's node pays the invoice over the channel, and gets the preimage for it.\n\n"
            f"```text\npreimage {preimage}\n```\n"
        )
        run(
            "The payment's id is the sha-256 of that preimage; mint and state are one transaction.",
            *("credits", "status", intent, "--wait"),
        )
        run("The credits.", "balance", "--all")
        run("A job, on these credits.", "submit", "--wait", "--cap", "5", "--", "echo", "hello")
        until("billed", lambda: "j1" in gristmill(grid, "usage").stdout)
        run("Its bill.", "usage")
        receipts = str(folder / "j1.receipts")
        run("Its receipts.", "receipt", "j1", "--wait", "-o", receipts)
        run("They are checked offline.", "verify", receipts)
        run("They are what was charged.", "audit", "prove", "j1", "--wait")
        run("Where each credit came from and went to.", "statement")
    return HEAD + "\n".join(parts)


def fixed(page: str) -> list[str]:
    """Its lines without what changes, and without spaces that line up what changes."""
    return [re.sub(r"\s+", " ", CHANGING.sub("~", line)).strip() for line in page.splitlines()]


def main() -> int:
    """Write the page."""
    with lightning_rig() as rig, tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(log_of(rig, pathlib.Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
