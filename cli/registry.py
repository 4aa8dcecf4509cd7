"""What operators say to the registry: tokens, decisions about nodes, the audit log.

How they are heard is in ``desk.py``.
"""

import argparse
import os
import pwd
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gristmill.cli import documents, places
from gristmill.cli.desk import Desk, open_desk
from gristmill.cli.output import Terminal, clean, plural
from gristmill.wire.enrolment import NodeToken, fingerprint, parse_token
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError
from gristmill.wire.registry import (
    SCOPES,
    AddPrincipal,
    Decide,
    IssueToken,
    NewToken,
    NodeRow,
    PrincipalRow,
    Record,
)
from gristmill.wire.units import format_bytes, format_ms

_ANSWER_MS = 10_000
PATIENCE_S = 1.0  #: with a registry that is started again
_ACTS = ("approve", "reject", "limit", "quarantine", "release", "ban", "revoke")
T = TypeVar("T")


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """One of the actions of ``node``, ``token`` and ``audit``."""
    if args.verb == "audit" and args.action == "verify":
        return _verify(args, terminal)
    if args.verb == "audit" and (args.state or _file_of(args).exists()):
        return _log(args, terminal)
    with open_desk(args) as desk:
        if args.verb == "audit":
            for record in desk.rows("log", Record, args.name or ""):
                _show_record(record, terminal)
            return EXIT_OK
        if args.verb == "token":
            return _token_of_person(desk, args, terminal)
        if args.action in ("token", "rotate"):
            return _token_of_node(desk, args, terminal)
        if args.action == "list":
            show_nodes(desk.rows("nodes", NodeRow), terminal)
            return EXIT_OK
        assert args.action in _ACTS
        return _decide(desk, args, terminal)


def who(by: str | None) -> str:
    """Who decides: as they say, else the user who typed it, also through sudo."""
    if by:
        return by
    name = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    if name is None:
        try:
            name = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            name = f"uid-{os.geteuid()}"
    return f"local:{name}"


# ------------------------------------------------------------ nodes


def _decide(desk: Desk, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.action == "release" and not desk.has_registry():
        return _release(desk, args, terminal)
    seen = args.version
    if seen is None:
        held = desk.rows("nodes", NodeRow, args.name)
        holding = [row for row in held if row.principal.state not in _FREE] or held
        seen = holding[-1].principal.version if holding else 0
    message = Decide(
        1,
        who(args.by),
        args.action,
        args.name,
        seen,
        args.reason or "",
        getattr(args, "slots", None) or 0,
        getattr(args, "node_class", None) or "",
    )
    try:
        row, is_repeat = desk.ask(message, NodeRow)
    except RemoteError as error:
        if args.action == "release" and error.code == "UNKNOWN_NODE" and desk.is_relayed:
            return _release(desk, args, terminal)  # this host let it in, the registry did not
        if error.code != "WRONG_STATE" or args.version is not None or seen < 2:
            raise
        try:  # we may have said it before, about the version before
            again = msgspec.structs.replace(message, seen=seen - 1)
            row, is_repeat = desk.ask(again, NodeRow)
        except RemoteError:
            raise error from None
    if terminal.is_json:
        terminal.document(documents.encode(nodes_of([row])))
        return EXIT_OK
    told = f"{row.principal.name} is {row.principal.state}, version {row.principal.version}"
    if args.action == "approve" and row.principal.state == "pending":
        needed = f"{len(row.approvals)} of {plural(row.approvals_needed, 'approval')}"
        told += f": {needed}, by {', '.join(row.approvals)}; another operator must approve it"
    terminal.print(clean(told + "; it was before, nothing changed" * is_repeat))
    return EXIT_OK


def _release(desk: Desk, args: argparse.Namespace, terminal: Terminal) -> int:
    """Quarantine of a node that the registry does not know is the broker's own."""
    desk.client.release(args.name)
    if terminal.is_json:
        terminal.document(documents.encode(documents.Released(args.name)))
    terminal.say(
        f"{clean(args.name)} is not in quarantine: it gets work, and every result of it is checked"
        " until ten in a row are confirmed"
    )
    return EXIT_OK


_FREE = ("rejected", "expired", "banned", "revoked")


def _token_of_node(desk: Desk, args: argparse.Namespace, terminal: Terminal) -> int:
    is_rotation = args.action == "rotate"
    message = IssueToken(
        1,
        who(args.by),
        args.name,
        "" if is_rotation else args.owner,
        "" if is_rotation else (args.node_class or ""),
        args.ttl or 0,
        is_rotation,
    )
    new, _ = desk.ask(message, NewToken)
    if terminal.is_json:
        terminal.document(
            documents.encode(
                documents.NodeToken(
                    new.name,
                    new.token,
                    new.expires_ms,
                    fingerprint(new.enrolment.public),
                    drop_in(new, is_rotation),
                )
            )
        )
        return EXIT_OK
    terminal.print(new.token)
    left_ms = max(0, new.expires_ms - time.time_ns() // 1_000_000)
    terminal.say(f"\nshown this once; good for one use within {format_ms(left_ms)}")
    if new.revoked:
        terminal.say(f"an earlier token for {new.name} was revoked")
    terminal.say(f"fingerprint of the registry: {fingerprint(new.enrolment.public)}")
    for broker in new.brokers:
        terminal.say(f"fingerprint of {broker.address}: {fingerprint(broker.public)}")
    terminal.say(f"\nas root on that machine, in one piece:\n\n{drop_in(new, is_rotation)}")
    terminal.say(f"then: gristmill node approve {new.name}" * (not is_rotation))
    return EXIT_OK


def drop_in(new: NewToken, is_rotation: bool) -> str:
    """What a node's administrator pastes: the token as a credential, and who uses it."""
    token: NodeToken = parse_token(new.token)
    unit = f"gristmill-worker@{token.name}.service"
    folder = f"/etc/systemd/system/{unit}.d"
    credential = f"/etc/gristmill/enrol-{token.name}"
    rotate = " --rotate" if is_rotation else ""
    settings = [f"GRISTMILL_WORKER_NAME={token.name}"]
    for broker in new.brokers[:1]:  # a worker serves one
        settings.append(f"GRISTMILL_WORKER_BROKER={broker.address}")
        settings.append(f"GRISTMILL_WORKER_BROKER_KEY={broker.public}")
    environment = "".join(f"{line}\n" for line in settings)
    return (
        f"mkdir -p /etc/gristmill {folder}\n"
        f"(umask 077; printf '%s\\n' '{new.token}' > {credential})\n"
        f"cat > /etc/gristmill/worker-{token.name}.env <<'END'\n"
        f"{environment}"
        "END\n"
        f"cat > {folder}/enrol.conf <<'END'\n"
        f"# registry {fingerprint(new.enrolment.public)}\n"
        "[Service]\n"
        f"LoadCredential=enrol:{credential}\n"
        "TimeoutStartSec=infinity\n"
        # the unit's own interpreter: systemd looks for commands in /usr and /usr/local alone
        "ExecStartPre=/usr/bin/env ${GRISTMILL_PYTHON} -P -m gristmill.cli.main node enrol"
        " --token-file ${CREDENTIALS_DIRECTORY}/enrol"
        f" --state ${{STATE_DIRECTORY}}{rotate}\n"
        "END\n"
        f"systemctl daemon-reload && systemctl restart --no-block {unit}\n"
    )


def nodes_of(rows: Sequence[NodeRow]) -> documents.Nodes:
    """The document of what the registry told."""
    nodes = []
    for row in rows:
        one, report = row.principal, row.report
        checks = [
            documents.NodeCheck(check.name, check.is_ok, check.detail) for check in report.checks
        ]
        nodes.append(
            documents.Node(
                one.name, one.public, one.tenant, one.state, one.version, one.reason,
                one.node_class, one.slots_max, row.source, report.host, report.kernel,
                report.cpus_milli, report.memory_bytes, report.disk_bytes, report.metering,
                report.tiers, report.versions, checks, row.enrolled_ms, row.seen_ms, row.until_ms,
                row.approvals, row.approvals_needed, row.flags, row.flagged, row.decided_by,
                row.decided_ms,
            )
        )  # fmt: skip
    return documents.Nodes(nodes)


def show_nodes(rows: Sequence[NodeRow], terminal: Terminal) -> None:
    """A line for each node."""
    ordered = sorted(rows, key=lambda row: (row.principal.name, row.change))
    if terminal.is_json:
        terminal.document(documents.encode(nodes_of(ordered)))
        return
    if not ordered:
        terminal.say("no node has enrolled\n  next: gristmill node token NAME")
        return
    now_ms = time.time_ns() // 1_000_000
    lines = []
    for row in ordered:
        principal, report = row.principal, row.report
        slots = f"{principal.slots_max}" if principal.slots_max else ""
        size = f"{report.cpus_milli / 1000:g} cpus, {format_bytes(report.memory_bytes)}"
        lines.append([
            principal.name, principal.state, str(principal.version), principal.node_class, slots,
            f"{size}, {report.metering}", row.source,
            f"{format_ms(max(0, now_ms - row.seen_ms))} ago", _told(row, now_ms),
        ])  # fmt: skip
    head = ["NODE", "STATE", "VERSION", "CLASS", "SLOTS", "HARDWARE", "FROM", "SEEN", "WHY"]
    styles = {"NODE": "bold", "STATE": "state"}
    terminal.table(head, lines, right=["VERSION", "SLOTS"], styles=styles)


def _told(row: NodeRow, now_ms: int) -> str:
    """Why it is in its state: who said so, what they said, what should be known besides."""
    parts = []
    if row.principal.state == "pending":
        parts.append(f"expires in {format_ms(max(0, row.until_ms - now_ms))}")
        if row.approvals:
            parts.append(f"{len(row.approvals)} of {row.approvals_needed} approvals")
    elif row.decided_by:
        by = row.decided_by if len(row.decided_by) < 64 else f"{row.decided_by[:16]}..."
        parts.append(f"by {by}")
    if row.principal.reason:
        parts.append(row.principal.reason)
    if row.flags:
        parts.append(f"FLAGGED {row.flags} times: {row.flagged}")
    return "; ".join(parts)


# ------------------------------------------------------------ people


def _token_of_person(desk: Desk, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.action == "list":
        rows = desk.rows("principals", PrincipalRow)
        _show_tokens(rows, terminal)
        return EXIT_OK
    if args.action == "revoke":
        held = desk.rows("principals", PrincipalRow, args.name)
        seen = held[-1].principal.version if held else 0
        message = Decide(
            1, who(args.by), "revoke", args.name, seen, args.reason or "", is_token=True
        )
        row, _ = desk.ask(message, PrincipalRow)
        if terminal.is_json:
            terminal.document(documents.encode(documents.Tokens([token_of(row)])))
        else:
            terminal.print(clean(f"{row.principal.name} is revoked"))
        return EXIT_OK
    from gristmill.wire.tokens import new_token

    token = new_token(args.name, _broker_key(args))
    expires_ms = time.time_ns() // 1_000_000 + args.expires if args.expires else 0
    added = AddPrincipal(
        1,
        who(args.by),
        token.public,
        "operator" if args.operator else "client",
        args.name,
        args.tenant,
        args.scope or list(SCOPES),
        expires_ms,
    )
    row, _ = desk.ask(added, PrincipalRow)
    if terminal.is_json:
        terminal.document(documents.encode(documents.NewToken(token.text, token_of(row))))
        return EXIT_OK
    terminal.print(token.text)
    until = f", until {_when(expires_ms)}" if expires_ms else ""
    terminal.say(
        f"shown this once: it is {row.principal.role} {args.name} of {args.tenant}{until}"
        "\n  next: give it to that person as GRISTMILL_TOKEN"
    )
    return EXIT_OK


def _broker_key(args: argparse.Namespace) -> str:
    """The broker's public key: as given, or of the broker of this machine's grid."""
    if args.broker_key:
        return str(args.broker_key)
    from gristmill.wire.keys import BROKER_KEY, load_key

    path = places.state_folder(os.environ) / "broker" / BROKER_KEY
    if not path.exists():
        raise RemoteError(
            "INVALID_SPEC",
            f"the public key of the broker is not known here ({path} is not there)",
            "give --broker-key, as 'python -m gristmill.broker --print-key' prints it",
        )
    return bytes(load_key(path).verify_key).hex()


def token_of(row: PrincipalRow) -> documents.Token:
    """What of a document the registry told."""
    one = row.principal
    return documents.Token(
        one.name, one.public, one.role, one.tenant, one.state, one.version, one.scopes,
        one.expires_ms, one.reason, row.decided_by, row.decided_ms,
    )  # fmt: skip


def _show_tokens(rows: Sequence[PrincipalRow], terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.document(documents.encode(documents.Tokens([token_of(row) for row in rows])))
        return
    if not rows:
        terminal.say("no tokens\n  next: gristmill token create NAME --tenant TENANT")
        return
    now_ms = time.time_ns() // 1_000_000
    lines = []
    for row in sorted(rows, key=lambda row: (row.principal.name, row.change)):
        principal = row.principal
        is_over = 0 < principal.expires_ms <= now_ms and principal.state == "active"
        lines.append([
            principal.name, "expired" if is_over else principal.state, principal.role,
            principal.tenant, ",".join(principal.scopes) or "all",
            _when(principal.expires_ms) if principal.expires_ms else "never",
            fingerprint(principal.public), f"by {row.decided_by}"
            + (f"; {principal.reason}" if principal.reason else ""),
        ])  # fmt: skip
    head = ["TOKEN", "STATE", "ROLE", "TENANT", "SCOPES", "EXPIRES", "KEY", "WHY"]
    terminal.table(head, lines, styles={"TOKEN": "bold", "STATE": "state"})


# ------------------------------------------------------------ the audit log


def _open(args: argparse.Namespace) -> tuple[Any, Path]:
    try:
        from gristmill.broker.registry import db
    except ImportError as error:
        raise RemoteError(
            "INVALID_SPEC", f"the audit needs {error.name}", "pip install 'gristmill[broker]'"
        ) from None
    return db, _file_of(args)


def _file_of(args: argparse.Namespace) -> Path:
    state = Path(args.state) if args.state else places.state_folder(os.environ) / "registry"
    return state / "registry.db"


def _log(args: argparse.Namespace, terminal: Terminal) -> int:
    db, path = _open(args)
    file = db.open_for_reading(path)
    after = 0
    try:
        while page := db.records(file, after, args.name or "", 500):
            after = page[-1].number
            for record in page:
                _show_record(record, terminal)
    finally:
        file.close()
    return EXIT_OK


def _show_record(record: Record, terminal: Terminal) -> None:
    if terminal.is_json:
        terminal.document(documents.encode(documents.AuditRecord(record)))
    else:
        terminal.print(clean(line_of(record)))


def line_of(record: Record) -> str:
    """One act as a line."""
    by = record.by if len(record.by) < 64 else f"{record.by[:16]}..."
    moved = record.state_before
    if (record.state_after, record.version_after) != (record.state_before, record.version_before):
        moved = f"{record.state_before} v{record.version_before} -> {record.state_after}" + (
            f" v{record.version_after}"
        )
    name = record.name or record.subject[:16] or "-"
    why = f": {record.why}" if record.why else ""
    return f"{record.number:>6} {_when(record.at_ms)} {by} {record.act} {name} ({moved}){why}"


def _verify(args: argparse.Namespace, terminal: Terminal) -> int:
    db, path = _open(args)
    file = db.open_for_reading(path)
    try:
        file.execute("BEGIN")
        faults = list(db.verify(file))
        row = file.execute("SELECT number, hex(chain) FROM record ORDER BY number DESC").fetchone()
        count, head = row or (0, "")
        head = f"{count}:{head.lower()}"
        if args.head and not faults:
            faults = _compare(file, args.head)
    finally:
        file.close()
    if terminal.is_json:
        terminal.document(documents.encode(documents.AuditVerified(str(path), faults, count, head)))
    elif faults:
        terminal.say(f"{path} is NOT in order:", "red")
        for fault in faults:
            terminal.print(clean(fault))
    else:
        told = plural(count, "record")
        terminal.print(f"{path} is in order: {told} from the first, each chained to the one before")
        terminal.print(f"head {head}")
    return EXIT_FAILED if faults else EXIT_OK


def _compare(file: Any, head: str) -> list[str]:
    """Whether a head that was kept elsewhere is one of this log's."""
    number, _, chain = head.partition(":")
    if not number.isdigit() or len(chain) != 64:
        raise RemoteError("INVALID_SPEC", f"{head!r:.100} is no head", "NUMBER:CHAIN, as printed")
    found = file.execute("SELECT hex(chain) FROM record WHERE number = ?", (int(number),))
    row = found.fetchone()
    if row is None:
        return [f"record {number} was there when the head was taken, and is not there now"]
    return [] if row[0].lower() == chain else [f"record {number} is not what it was"]


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ms / 1_000))
