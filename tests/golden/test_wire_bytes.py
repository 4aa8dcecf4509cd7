"""The bytes of every message, kept for ever: a change here is a new protocol number.

``wire.json`` maps the message's name to the hex of its header. To add a message, run this file with
``GRISTMILL_BLESS=1`` and read the diff: existing lines never change under the same protocol number.
"""

import json
import os
import pathlib

import msgspec
from nacl.signing import SigningKey

from gristmill.wire import chain, client, enrolment, ledger, payments, registry, worker
from gristmill.wire.frames import encode
from gristmill.wire.limits import PROTOCOL
from gristmill.wire.spec import Command, JobSpec, Tariff

FILE = pathlib.Path(__file__).with_name("wire.json")
SESSION = bytes(range(16))
SPEC = JobSpec("function", function="ab" * 32, name="square", count=3)
HEAD = worker.ResultHead(1, 1 << 40, 7, 0, 3, "q", 30, 20, 1024, "cgroup", True, b"s")

KEY = bytes(SigningKey(bytes(32)).verify_key).hex()
ENROL = enrolment.Enrol(
    "gme_x", KEY, "mill",
    enrolment.Report(
        "h", "6.1", 4_000, 1 << 33, 1 << 40, "cgroup", ["job"], {"gristmill": "0.1.0"},
        [enrolment.Check("jail", True, "12 trials")],
    ),
)  # fmt: skip

EXAMPLES = {
    "worker.Hello": worker.Hello(
        1, "w0", "00" * 32, SESSION, 2, 2000, 1 << 30, 1 << 40, {"a": "b"}, ["job"], ["3.11"],
        "cgroup", "0.1.0",
    ),
    "worker.Report": worker.Report(
        SESSION, 5, True, [0, 1], [worker.Held(1 << 40, 0, 4, 2)], [HEAD],
        [worker.Returned(1 << 40, [(3, 2)], "recalled")], False,
        worker.HostReading(250, 50, 1, 2, 3, [worker.SlotReading(0, 7, 4, 10, 20, 30, 2)]),
    ),
    "worker.Lines": worker.Lines(SESSION, [worker.Piece(1 << 40, 4, 1, 4096)]),
    "worker.Goodbye": worker.Goodbye(SESSION, "drained"),
    "worker.Welcome": worker.Welcome(SESSION, 3, "b1", 1000, 3500, "unix:///s"),
    "worker.Orders": worker.Orders(
        5, 1, [worker.JobOpening(7, "ann", SPEC, Tariff(), "p", "g")],
        [worker.LeaseGrant(1 << 40, 0, 7, 1, [(0, 3)], 100, [worker.ParcelHead(7, 0, 3, "q")])],
        [9], [(10, 12)], [6], 1000, 3500,
    ),
    "worker.Refused": worker.Refused("REJOIN", "m", "h"),
    "client.Hello": client.Hello(1, SESSION, "ann", "3.11", "0.1.0"),
    "client.Submit": client.Submit(SESSION, 2, SESSION, SPEC),
    "client.Submit command": client.Submit(
        SESSION, 2, SESSION, JobSpec("command", command=Command(["echo", "{}"]))
    ),
    "client.Parcel": client.Parcel(SESSION, 7, 0, 3, "q"),
    "client.CloseUpload": client.CloseUpload(SESSION, 3, 7, 3),
    "client.Subscribe": client.Subscribe(SESSION, 4, 7, 0, 1 << 20),
    "client.Credit": client.Credit(SESSION, 7, 3, 1 << 21),
    "client.Cancel": client.Cancel(SESSION, 5, 7, [(1, 1)]),
    "client.Ask": client.Ask(SESSION, 6, "job", job=7),
    "client.Buy": client.Buy(SESSION, 8, "k", "lnd", 10**7, 10_000, 100),
    "client.Purchase": client.Purchase(SESSION, 9, "confirm", "pi1", 5000, "transfer 77"),
    "client.Accepted": client.Accepted(2, 7, False, 1 << 23),
    "client.InputCredit": client.InputCredit(7, 3, 1 << 23),
    "client.Results": client.Results(7, 1, HEAD, 1, "00" * 32, [(1, 1)]),
    "client.Refused": client.Refused(2, "UNKNOWN_JOB", "m", "h", 7),
    "client.Pong": client.Pong(),
    "ledger.Post keys": ledger.Post(
        "b1", 1,
        [ledger.Key("broker", "b1", "ab" * 32, 5), ledger.Key("node", "b1/w0", "cd" * 32, 6)],
    ),
    "ledger.AskReceipts": ledger.AskReceipts(9, "ann", "b1/7", 3, 1 << 40),
    "ledger.AskReceipts number": ledger.AskReceipts(9, "ann", "b1/7", number=40),
    "ledger.AskBalance": ledger.AskBalance(9, "ann", "1-2-3"),
    "ledger.AskStatement": ledger.AskStatement(9, "tenant:ann", 17, 99),
    "payments.Sell": payments.Sell(
        1, [payments.Offer("lnd", "msat", 1000, 10_000, 10**6, 10**10, 3_600_000)]
    ),
    "payments.CreateIntent": payments.CreateIntent(2, "ann", "k", "lnd", 10**7, 10_000, 100),
    "payments.AskIntents": payments.AskIntents(3, "ann", "pi1", "lnd", "watched", 9, 10),
    "payments.CancelIntent": payments.CancelIntent(4, "ann", "pi1"),
    "payments.ConfirmIntent": payments.ConfirmIntent(5, "pi1", 5000, "transfer 77"),
    "payments.DecideIntent": payments.DecideIntent(6, "pi1", "refund", "r"),
    "payments.ReportInvoice": payments.ReportInvoice(7, "pi1", "ab" * 32, "lnbc1", 10**12),
    "payments.Observe": payments.Observe(
        8, "lnd", "ab" * 32, "closed", [payments.Paid("ab" * 32, 10_100, bytes(32))], "hint", b"{}"
    ),
    "payments.AskOffers": payments.AskOffers(9),
    "payments.IntentChanged": payments.IntentChanged("pi1", "lnd"),
    "chain.Agree": chain.Agree(1, chain.Agreement("ab" * 32, "ann", 1, bytes(20), bytes(20), 7)),
    "chain.StatePayee": chain.StatePayee(
        2, chain.Payee("ab" * 32, chain.pool_of(1, bytes(20)), bytes(20), 9), bytes(64)
    ),
    "chain.StateRental": chain.StateRental(3, bytes(32), bytes(32), 9, 3, 6, True, 77),
    "chain.CommitPayouts": chain.CommitPayouts(4, "1/ab", 3, 10**12),
    "chain.StateRoot": chain.StateRoot(5, "1/ab", 3, bytes(32), bytes(32), bytes(32), 77),
    "chain.StateClaims": chain.StateClaims(6, "1/ab", 10**9, 77),
    "chain.AskPayout": chain.AskPayout(7, "1/ab"),
    "chain.AskLeaves": chain.AskLeaves(8, "1/ab", 3, bytes(20), "ab" * 32),
    "chain.AskAgreed": chain.AskAgreed(13, [bytes(32), bytes(32)]),
    "chain.EndRental": chain.EndRental(10, "ann", bytes(32)),
    "chain.ShowVoucher": chain.ShowVoucher(
        11, "ann", bytes(32), 10**9, bytes(32), bytes(65), True, 10**9
    ),
    "chain.VoucherRuling": chain.VoucherRuling(
        12, "INVALID_SPEC", "m", chain.Shown(10**9, 7)
    ),
    "chain.AskChainBooks": chain.AskChainBooks(9, "1/ab"),
    "ledger.Post rental": ledger.Post("b1", 4, [ledger.Hold("b1/7", "ann", 100, "ab" * 32)]),
    "ledger.Post": ledger.Post(
        "b1", 4,
        [
            ledger.Hold("b1/7", "ann", 100),
            ledger.Contribution(
                "b1/7", "ann", "00" * 32, 1 << 40, 0, 3, 1, 3, 0, 30, 20, 1024, "cgroup", True,
                50, 1, 1_700_000_000_000,
            ),
            ledger.Release("b1/7"),
        ],
    ),
    "registry.Follow": registry.Follow("b1", 9),
    "registry.IssueToken": registry.IssueToken(1, "ann", "mill", "lab", "gpu", 900_000, True),
    "registry.Decide": registry.Decide(2, "ann", "approve", "mill", 1, "ours", 4, "gpu"),
    "registry.Decide token": registry.Decide(3, "ann", "revoke", "ci", 1, is_token=True),
    "registry.AddPrincipal": registry.AddPrincipal(
        4, "ann", "ab" * 32, "client", "ci", "lab", ["submit", "read"], 1_700_000_000_000
    ),
    "registry.AskRows": registry.AskRows(5, "log", 7, "mill"),
    "registry.Note": registry.Note("b1", "FORBIDDEN", "ab" * 32, "eve", "node approve"),
    "registry.Changes": registry.Changes(
        9,
        [
            registry.Principal(
                "ab" * 32, "worker", "mill", "lab", "active", 3, [], 0, 4, "gpu", "because"
            )
        ],
        False,
    ),
    "registry.RegistryAnswer": registry.RegistryAnswer(5, msgspec.Raw(b"\xc0"), True),
    "registry.RegistryRefused": registry.RegistryRefused(5, "STALE_DECISION", "m", "h"),
    "enrolment.Enrol": ENROL,
    "enrolment.Enrol signed": enrolment.sign(
        enrolment.Enrol("gme_x", KEY, "mill", ENROL.report, bytes(32), replaces=KEY),
        SigningKey(bytes(32)), "ab" * 32, SigningKey(bytes(32)),
    ),
    "enrolment.Challenge": enrolment.Challenge(bytes(32), 1_700_000_000_000),
    "enrolment.Enrolled": enrolment.Enrolled(
        "mill", KEY, "pending", 1, "", "gpu", 0, 5, 2_000,
        [enrolment.BrokerAt("tcp://10.0.0.1:7032", "ab" * 32)],
    ),
    "enrolment.EnrolRefused": enrolment.EnrolRefused("TOKEN_USED", "m", "h"),
    "ledger.Acked": ledger.Acked("b1", 6, [ledger.Verdict(4, "b1/7")]),
}  # fmt: skip


def test_the_bytes_of_every_message_are_what_they_always_were():
    now = {name: encode(message).hex() for name, message in sorted(EXAMPLES.items())}
    if os.environ.get("GRISTMILL_BLESS"):
        FILE.write_text(json.dumps({"protocol": PROTOCOL, "messages": now}, indent=1) + "\n")
    kept = json.loads(FILE.read_text())
    assert kept == {"protocol": PROTOCOL, "messages": now}


def test_the_kept_bytes_still_decode_to_the_same_messages():
    kept = json.loads(FILE.read_text())["messages"]
    decoders = [
        worker.decode_worker, worker.decode_orders, client.decode_client, client.decode_broker,
        ledger.decode_to_ledger, ledger.decode_from_ledger, registry.decode_to_registry,
        registry.decode_from_registry, enrolment.decode_to_enrolment,
        enrolment.decode_from_enrolment,
    ]  # fmt: skip
    for name, message in EXAMPLES.items():
        decoded = []
        for decoder in decoders:
            try:
                decoded.append(decoder.decode(bytes.fromhex(kept[name])))
            except Exception:  # another dialogue's message
                continue
        assert message in decoded, name
