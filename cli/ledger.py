"""``gristmill ledger``: the audit, and what an operator may do to the books."""

import argparse
import hashlib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.cli import documents, places
from gristmill.cli.output import Terminal, clean
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.units import format_credits

if TYPE_CHECKING:
    from nacl.signing import SigningKey

_ANSWER_MS = 10_000
#: the next command of who funds and transfers; that of the code is for who submits
_NEXT = {
    "LEDGER_CONFLICT": "to move more, give another --ref; 'gristmill statement --account"
    " tenant:NAME' shows what was moved",
    "INSUFFICIENT_CREDITS": "gristmill balance --all",
    "INVALID_SPEC": "gristmill balance --all, which lists the accounts",
}


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions."""
    if args.action == "audit":
        return _audit(args, terminal)
    from gristmill.wire.ledger import Fund, Leg, Transfer

    message: Fund | Transfer
    if args.action == "fund":
        message = Fund(1, args.tenant, args.credits, args.ref)
        told = f"{clean(args.tenant)} has {_credits(args.credits)} more for {args.ref!r}"
    else:
        message = Transfer(
            1,
            [
                Leg(hashlib.sha256(f"transfer\0{args.ref}\0{at}".encode()).digest()[:16], *leg)
                for at, leg in enumerate(args.legs)
            ],
        )
        told = "; ".join(
            f"{_credits(credits)} from {debit} to {credit}" for debit, credit, credits in args.legs
        )
    address = args.ledger or _beside(places.default_address(os.environ))
    try:
        _ask(address, message, args.ledger_key)
    except RemoteError as error:
        raise RemoteError(error.code, _named(error.message, message), error.hint) from None
    if terminal.is_json:
        terminal.document(documents.encode(documents.Moved(args.ref)))
    else:
        terminal.print(f"{told}; said again, it changes nothing")
    return EXIT_OK


def _named(told: str, message: Any) -> str:
    """What the ledger says of a leg's id, said of the ``--ref`` that it was made of."""
    for leg in getattr(message, "legs", ()):
        told = told.replace(f"the transfer {leg.id.hex()}", "the transfer of this --ref")
    return told


def _credits(ucredits: int) -> str:
    return f"{format_credits(ucredits)} credit{'' if ucredits == 1_000_000 else 's'}"


def _beside(front: str) -> str:
    """The ledger's socket of the grid whose clients come to ``front``."""
    folder, _, name = front.rpartition("/")
    if front.startswith("ipc://") and name == "front":
        return f"{folder}/ledger"
    raise RemoteError(
        "INVALID_SPEC",
        f"the grid at {front} does not tell where its ledger listens",
        "name it: --ledger ipc:///path/ledger",
    )


def _ask(address: str, message: Any, ledger_key: str) -> None:
    """Raises what the ledger refuses with, or ``UNREACHABLE``."""
    import zmq

    from gristmill.wire.curve import be_client
    from gristmill.wire.frames import encode
    from gristmill.wire.ledger import LedgerAnswer, LedgerRefused, decode_from_ledger

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, _ANSWER_MS)
    try:
        if address.startswith("tcp://"):
            be_client(socket, _own_key(address, ledger_key), ledger_key)
        socket.connect(address)
        socket.send(encode(message))
        answer = decode_from_ledger.decode(socket.recv())
    except zmq.Again:
        raise RemoteError(
            "UNREACHABLE",
            f"the ledger at {address} did not answer within {_ANSWER_MS // 1000} s: whether it was "
            "done is not known",
            "say it again with the same --ref: what was done is not done twice"
            + "; over tcp:// a ledger hears only keys of its --allow" * address.startswith("tcp:"),
        ) from None
    except zmq.ZMQError as error:
        raise RemoteError(
            "INVALID_SPEC",
            f"{address!r} is not an address: {error.strerror}",
            "write it as ipc:///path/ledger or tcp://HOST:PORT",
        ) from None
    finally:
        socket.close()
        context.term()
    if isinstance(answer, LedgerRefused):
        raise RemoteError(answer.code, answer.message, _NEXT.get(answer.code, ""))
    assert isinstance(answer, LedgerAnswer)


def _own_key(address: str, ledger_key: str) -> "SigningKey":
    """The key of our token, which the ledger knows as an operator's."""
    from gristmill.wire.login import read_login
    from gristmill.wire.tokens import parse_token

    if not ledger_key:
        raise RemoteError(
            "UNAUTHORISED",
            f"{address} must prove that it is the ledger",
            "--ledger-key: its public key, which its log names at each start",
        )
    token = os.environ.get("GRISTMILL_TOKEN", "")
    if not token and (login := read_login(os.environ)) is not None:
        token = login.token
    return parse_token(token).key


def _audit(args: argparse.Namespace, terminal: Terminal) -> int:
    db, place, own = _open(args)
    from gristmill.ledger.audit import audit

    try:
        faults = audit(db, own)
        facts = {} if faults else _facts(db)
    finally:
        db.close()
    if terminal.is_json:
        terminal.document(documents.encode(documents.Audit(place, faults, facts)))
    elif faults:
        terminal.say(f"{place} is NOT in order:", "red")
        for fault in faults:
            terminal.print(fault)
    else:
        terminal.print(f"{place} is in order: every row from the first, sum of all accounts 0")
        rows = [
            [name, f"{fact:,}" if isinstance(fact, int) else fact] for name, fact in facts.items()
        ]
        terminal.table(["WHAT", "HOW MANY, OR WHICH"], rows, styles={"WHAT": "bold"})
    return EXIT_FAILED if faults else EXIT_OK


def _open(args: argparse.Namespace) -> tuple[Any, str, Iterable[str]]:
    """(one view of the books that does not change, where they are, what their database finds)."""
    try:
        if args.books:
            from gristmill.ledger import postgres

            db: Any = postgres.Connection(args.books)
            db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return db, db.place, postgres.check(db)
        from gristmill.ledger.sqlite_checks import check, open_for_reading

        state = Path(args.state) if args.state else places.state_folder(os.environ)
        path = state / "ledger" / "ledger.db"
        if not path.exists():
            raise RemoteError(
                "INVALID_SPEC", f"there are no books at {path}", "name the grid's folder: --state"
            )
        db = open_for_reading(path)
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM account").fetchone()  # from here on it is one view
    except ImportError as error:
        raise RemoteError(
            "INVALID_SPEC", f"the audit needs {error.name}", "pip install 'gristmill[ledger]'"
        ) from None
    except RemoteError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())  # psycopg's have lines and tabs
        hint = "--books postgresql://USER@HOST/NAME" if args.books else "restore them from a backup"
        raise RemoteError("INVALID_SPEC", f"the books cannot be read: {told}", hint) from None
    return db, str(path), itertools.chain(_losses(path.parent), check(db))


def _losses(folder: Path) -> list[str]:
    """What the ledger found missing of its log, and nobody has accepted yet."""
    return [kept.read_text().strip() for kept in sorted(folder.glob("ledger.db-wal.lost-*.txt"))]


def _facts(db: Any) -> dict[str, int | str]:
    def one(query: str) -> Any:
        row = db.execute(query).fetchone()
        return row[0] if row else ""

    heads = {
        f"head of the entries of {broker}": chain.hex()
        for broker, chain in db.execute(
            "SELECT outbox.broker, chain FROM outbox JOIN entry"
            " ON entry.broker = outbox.id AND entry.sequence = applied ORDER BY outbox.id"
        )
    }
    head = one("SELECT chain FROM transfer ORDER BY number DESC LIMIT 1")
    return {
        "accounts": one("SELECT count(*) FROM account"),
        "transfers": one("SELECT count(*) FROM transfer"),
        "open holds": one("SELECT count(*) FROM hold WHERE closed_ms = 0"),
        "contributions": one("SELECT count(*) FROM contribution"),
        "head of the transfers": head.hex() if head else "",
        **heads,
    }
