"""A19: what is lost, repeated or late between processes changes nothing that anybody can see.

Links: client-broker, worker-broker, broker-ledger, which is that of treasury and settlement, too
(their messages pass a proxy that reads them),
and the requests of clients and workers to the store, which are HTTP (see ``chaos_http``). There is
no chance in what is injected: every message of a run is late (``delay``) or said twice
(``duplicate``), and in ``drop`` everything is lost the first time that it is said.

Not injected, and why: the questions with which this test waits for something and reads the final
state, since they are the measure; ``Fund`` and ``Transfer``, which a person says, who is told when
nobody knows what became of it.
A message that tells nothing but that somebody is there (a ping, a report or orders without work in
them) is lost the first time and every fortieth time, not each time: each one is new, so that losing
every one is a dead link, which is what tests/chaos is about. Copies that come out of order are said
where the sender says them again by itself; the others have their copy right behind them, since a
connection keeps its order. Orders at random are what tests/sim is for.
"""

import contextlib
import dataclasses
import pathlib
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args
from unittest.mock import ANY

import pytest
from grid_rig import until
from nacl.signing import SigningKey

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.ledger.payments.line import Line
from gristmill.wire import chain, ledger, worker
from gristmill.wire import client as front
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.limits import FRAME_BYTES_MAX
from gristmill.wire.payments import price_of
from gristmill.wire.registry import AskRows

sys.path.append(str(pathlib.Path(__file__).parents[1] / "chaos"))
from chaos_http import HttpFaults
from chaos_proxy import DOWN, UP, ChaosProxy, Message

Fault = Literal["none", "drop", "duplicate", "delay"]
Kind = tuple[str, str, str]  #: (link, direction, message)

#: link: what is said towards the process that listens, what comes back, and their decoders
LINKS: dict[str, tuple[Any, Any, Any, Any]] = {
    "client-broker": (
        front.ClientMessage, front.BrokerToClient, front.decode_client, front.decode_broker
    ),
    "worker-broker": (
        worker.WorkerMessage, worker.BrokerToWorker, worker.decode_worker, worker.decode_orders
    ),
    "broker-ledger": (
        ledger.ToLedger, ledger.FromLedger, ledger.decode_to_ledger, ledger.decode_from_ledger
    ),
}  # fmt: skip
LATE_S = 0.15
NTH = 40
#: said by nobody, or only when something goes wrong or takes long; they change nothing
BY_CHANCE = frozenset(
    {"Fund", "Transfer", "Refused", "LedgerRefused", "Ping", "Pong", "Goodbye", "Unsubscribe"}
)
#: what is the same when it is said again; of the others each is new, but see ``told``
NAMES = {
    "Submit": "submission is_dry_run", "Parcel": "job first", "CloseUpload": "job",
    "Subscribe": "job after", "Cancel": "request", "Steer": "request", "Ask": "request",
    "DrainWorker": "request", "ReleaseNode": "request", "Post": "first",
    "Operate": "request", "AskUsage": "request", "AskBalance": "request",
    "Results": "job sequence", "InputCredit": "job committed", "Answer": "request",
    "Accepted": "request", "LedgerAnswer": "request", "AskReceipts": "request", "Buy": "request",
    "AskStatement": "request",
    "Purchase": "request", "Sell": "request", "AskOffers": "request", "AskIntents": "request",
    "CreateIntent": "request", "CancelIntent": "request", "ConfirmIntent": "request",
    "DecideIntent": "request", "ReportInvoice": "request", "Observe": "request",
    "EndRental": "request", "Agree": "request", "StatePayee": "request", "StateRental": "request",
    "CommitPayouts": "request", "StateRoot": "request", "StateClaims": "request",
    "ShowVoucher": "rental cumulative", "VoucherRuling": "code message", "OnChain": "request",
    "AskAgreed": "request", "AskPayout": "request", "AskLeaves": "request",
    "AskChainBooks": "request",
}  # fmt: skip
#: what its sender says again by itself, so that an old copy may come behind what followed it
SAID_LATE = frozenset(
    {"Submit", "Parcel", "CloseUpload", "Subscribe", "Cancel", "Steer", "Ask", "DrainWorker"}
    | {"ReleaseNode", "Operate", "Post", "AskUsage", "AskBalance"}
)
#: not facts of the work but of the way it went: times, meters, how results were cut, keys; and what
#: a lost worker spent, since on a loaded machine one may be silent for longer than its ttl in any
#: run. Retries are compared without those losses (see ``facts``).
UNSTABLE = frozenset(
    "job submitted_ms started_ms finished_ms expires_ms wall_us cpu_us peak_kib"
    " spent_ucredits eta_ms results node lost retried".split()
)
#: facts of jobs that lost no worker
WITHOUT_LOSS = frozenset({"superseded", "attempt"})
#: jobs that keep nothing: what was read of them leaves the disk when its acknowledgement comes, or
#: a retention later when that was lost. So their rows are no facts; their results and bills are.
UNKEPT = frozenset({"unkept", "submit"})
#: silences count in these, and this test is about what comes after them
ENVIRONMENT = {
    "GRISTMILL_BROKER_WORKER_TTL_MS": "2000",
    "GRISTMILL_BROKER_WORKER_REPORT_MS": "200",
    "GRISTMILL_BROKER_LEDGER_RESEND_MS": "300",
    "GRISTMILL_BROKER_LEDGER_TTL_MS": "3000",
    "GRISTMILL_BROKER_TARIFF": "standard=gib:0",  # bills of wall time would be new each time
}


def told(said: Any) -> set[Hashable]:
    """What a message says that it would say again if it were lost; empty if each is new."""
    match said:
        case worker.Report():
            return {("result", one.job, one.first) for one in said.results} | {
                ("returned", one.lease_id) for one in said.returned
            }
        case worker.Orders():
            work = (
                {("lease", one.job, one.runs[0][0]) for one in said.leases}
                | {("opening", one.job) for one in said.openings}
                | {("close", job) for job in said.close}
            )
            # Of leases, which are other ones when the same work is given out again.
            return work or {("back", one) for one in [*said.recall, *dict(said.stop)]}
        case worker.Lines():
            return {("piece", one.index, one.stream, one.offset) for one in said.pieces}
        case front.JobEvent():
            return {(said.status.job, said.status.state)}
    fields = NAMES.get(type(said).__name__, "").split()
    return {tuple(getattr(said, field) for field in fields)} if fields else set()


class Injector:
    """Does the same thing to every message. ``kinds``: what was seen, ``hit``: what was done to."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.kinds: Counter[Kind] = Counter()
        self.hit: Counter[Kind] = Counter()
        self._lock = threading.Lock()
        self._said: set[Hashable] = set()
        self.is_over = False

    def plan(self, link: str) -> Callable[[Message], list[float]]:
        """For the proxy of a link."""
        _, _, decode_up, decode_down = LINKS[link]

        def decide(message: Message) -> list[float]:
            decoder = decode_up if message.direction == UP else decode_down
            said = decoder.decode(message.frames[0])
            kind = (link, message.direction, type(said).__name__)
            with self._lock:
                if self.is_over:
                    return [0]
                self.kinds[kind] += 1
                if self.fault == "none" or (self.fault == "drop" and not self._is_new(kind, said)):
                    return [0]
                self.hit[kind] += 1
            if self.fault == "duplicate":
                return [0, LATE_S if kind[2] in SAID_LATE else 0]
            return [] if self.fault == "drop" else [LATE_S]

        return decide

    def _is_new(self, kind: Kind, said: Any) -> bool:
        names = {(kind, name) for name in told(said)}
        if not names:
            return self.kinds[kind] % NTH == 1
        is_new = not names <= self._said
        self._said |= names
        return is_new


def every_kind() -> set[Kind]:
    """All that wire knows, but for what is ``BY_CHANCE``."""
    found = set()
    for link, (up, down, _, _) in LINKS.items():
        found |= {(link, UP, kind.__name__) for kind in get_args(up)}
        found |= {(link, DOWN, kind.__name__) for kind in get_args(down)}
    return {kind for kind in found if kind[2] not in BY_CHANCE}


def shaky(x: int) -> int:
    if x % 20 == 7:
        raise ValueError(f"{x} is bad luck")
    return 3 * x


@dataclasses.dataclass(frozen=True)
class Hands:
    """What the jobs below act with, and (past the proxies) wait with."""

    client: Client
    look: Client
    settlement: Line


def work(hands: Hands) -> dict[str, Any]:
    """Every kind of message of the dialogues; the same jobs each time. What the client saw.

    Side by side, since with losses most of the time is spent on waiting for nothing.
    """
    until("a worker matches", lambda: hands.look.dry_run(["echo", "x"]).workers_matching == 1)
    jobs = (
        _map, _unkept, _run, _submit, _large, _steered, _cancelled, _killed, _asked, _bought,
        _rented,
    )  # fmt: skip
    with ThreadPoolExecutor(len(jobs)) as pool:
        seen = [pool.submit(job, hands) for job in jobs]
    return {name: value for one in seen for name, value in one.result().items()}


def _map(hands: Hands) -> dict[str, Any]:
    values = hands.client.map(
        shaky, range(8), chunk=4, tier="batch", retries=1, losses=99, return_exceptions=True,
        name="map",
    )  # fmt: skip
    seen = [str(value) for value in values]
    assert values.job is not None
    pages = hands.client.receipts(values.job)
    statement = hands.client.statement()
    assert {row.what for row in statement} >= {"funded", "held", "paid"} and not statement.incident
    return {"map": seen, "it has receipts": bool(pages[0].receipts)}


def _unkept(hands: Hands) -> dict[str, Any]:
    values = hands.client.map(
        shaky, range(10, 12), keep=False, tier="batch", losses=99, name="unkept"
    )
    return {"unkept": list(values)}


def _run(hands: Hands) -> dict[str, Any]:
    runs = hands.client.run(["echo", "{}"], each=["a", "b"], losses=99, name="run")
    return {"run": [output.stdout for output in runs]}


def _submit(hands: Hands) -> dict[str, Any]:
    # One call: how many go into one job depends on when they were made.
    submit = hands.client.with_options(tier="batch", losses=99, name="submit").submit
    return {"submit": submit(shaky, 10).result(60)}


def _large(hands: Hands) -> dict[str, Any]:
    """An input and a value that travel through the store."""
    large = "x" * (2 * FRAME_BYTES_MAX)
    (value,) = hands.client.map(
        lambda text: text.upper(), [large], tier="batch", losses=99, name="large"
    )
    return {"large": value == large.upper()}


def _steered(hands: Hands) -> dict[str, Any]:
    with _stuck(hands, "steered") as job:
        hands.client.pause(job)
        seen = {"paused": hands.look.status(job).state}
        hands.client.resume(job)
        seen["resumed"] = hands.look.status(job).state
        hands.client.cancel(job)
    return seen


def _cancelled(hands: Hands) -> dict[str, Any]:
    """Five that wait, then the rest."""
    with _stuck(hands, "cancelled") as job:
        hands.client.cancel(job, [range(5, 10)])
        seen = {"five cancelled": hands.look.status(job).cancelled}
        hands.client.cancel(job)
    return seen


@contextlib.contextmanager
def _stuck(hands: Hands, name: str) -> Iterator[int]:
    """A whole job that no worker can run; its reader ends with it."""
    values = hands.client.map(shaky, range(12), labels={"no": "such"}, name=name)
    with _read(values):
        job = until("the job is there", lambda: values.job)
        until("uploaded", lambda: hands.look.status(job).uploaded == 12)
        yield job


def _killed(hands: Hands) -> dict[str, Any]:
    """Cancelled while it runs and prints: the order to stop is what ends it in time."""
    # What is written first comes again with what is written then.
    program = ["sh", "-c", "echo early; sleep 1; echo late; sleep 600"]
    endless = hands.client.run(program, losses=99, name="killed")
    with _read(endless):
        job = until("the job is there", lambda: endless.job)
        rows = until("it prints", lambda: [r for r in hands.look.logs(job) if b"late" in r.stdout])
        hands.client.cancel(job)
        return {"printed": rows[0].stdout, "killed": hands.look.wait(job, 60).state}


@contextlib.contextmanager
def _read(values: Iterator[Any]) -> Iterator[None]:
    """Somebody waits for these meanwhile, and is told of their end."""
    reading = threading.Thread(target=lambda: list(_quietly(values)), daemon=True)
    reading.start()
    yield
    reading.join(60)
    assert not reading.is_alive(), "a reader of a cancelled job hangs"


def _asked(hands: Hands) -> dict[str, Any]:
    """Questions, of which the broker takes two to the ledger."""
    hands.client.usage()
    return {
        "matching": hands.client.dry_run(["echo", "x"]).workers_matching,
        "sum": hands.client.balance(everyone=True).sum_ucredits,
    }


def _bought(hands: Hands) -> dict[str, Any]:
    """Credits: paid for, paid for by half and credited, not paid for after all."""
    until("credits are sold", lambda: hands.look.offers().offers)
    (offer,) = hands.client.offers().offers
    price = price_of(offer, 5_000_000)
    ids = {key: hands.client.buy("manual", 5_000_000, price, key).intent
           for key in ("paid", "short", "off")}  # fmt: skip
    for intent in ids.values():
        until("there is an invoice", lambda one=intent: hands.look.intents(one)[0].reference)
    hands.client.change_purchase("confirm", ids["paid"], received=price.due, ref="transfer 1")
    hands.client.change_purchase("confirm", ids["short"], received=price.due // 2, ref="transfer 2")
    hands.client.change_purchase("credit", ids["short"], ref="it is enough")
    hands.client.change_purchase("cancel", ids["off"])
    until("it is off", lambda: hands.look.intents(ids["off"])[0].state == "cancelled")
    return {f"bought: {view.key}": (view.state, view.credited_ucredits)
            for view in hands.client.intents()}  # fmt: skip


def _rented(hands: Hands) -> dict[str, Any]:
    """A rental, as the settlement sees it on its chain; a payout of nothing."""
    say, state = hands.client.on_chain, hands.settlement.ask
    asked = chain.Agreement("", "", 1, b"c" * 20, b"p" * 20, 7)
    agreed = say(chain.Agree(0, asked), chain.Agreement)
    spec, id_, pool = chain.spec_of(agreed), b"r" * 32, chain.pool_of(1, b"q" * 20)
    has = state(chain.StateRental(0, id_, spec, 5_000, 0, 0, False, 9), int)
    node = SigningKey(b"n" * 32)
    payee = chain.Payee(node.verify_key.encode().hex(), pool, b"a" * 20, 1)
    say(chain.StatePayee(0, payee, chain.sign_payee(payee, node)), type(None))
    payout = state(chain.CommitPayouts(0, pool, 1, 10), chain.Payout)
    with pytest.raises(RemoteError, match="the books have none of that number"):
        state(chain.StateRoot(0, pool, 1, spec, spec, spec, 9), chain.Payout)
    state(chain.StateClaims(0, pool, 0, 9), type(None))
    spent = say(chain.EndRental(0, "", id_), int)
    shown = say(chain.ShowVoucher(0, "", id_, 40, spec, bytes(65), True), chain.Shown)
    books = say(chain.AskChainBooks(0, pool), chain.ChainBooks)
    return {
        "rented": (has, payout.number, spent, shown.cumulative, books.locked),
        "payouts": (
            say(chain.AskPayout(0, pool), chain.Payout).number,
            say(chain.AskLeaves(0, pool), list[chain.Leaf]),
            say(chain.AskAgreed(0, [spec, id_]), list[bool]),
        ),
    }


def _quietly(values: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from values
    except Exception:
        return


def facts(client: Client) -> dict[str, Any]:
    """What the grid says afterwards, without what differs from run to run by nature."""
    jobs = sorted(client.jobs(), key=lambda job: job.name)
    found: dict[str, Any] = {"jobs": [job.name for job in jobs]}
    spent = meter = 0
    for job in jobs:
        for field in job.__struct_fields__:
            if field not in UNSTABLE:
                value = ANY if field in WITHOUT_LOSS and job.lost else getattr(job, field)
                found[f"job {job.name}: {field}"] = value
        found[f"job {job.name}: retries of its own failures"] = job.retried - job.lost
        rows = [] if job.name in UNKEPT else client.subtasks(job.job, limit=1_000)
        for row in rows:
            for field in row.__struct_fields__:
                if field not in UNSTABLE:
                    value = ANY if field in WITHOUT_LOSS and job.lost else getattr(row, field)
                    found[f"job {job.name} subtask {row.index}: {field}"] = value
        for row in [] if job.name in UNKEPT else client.logs(job.job, limit=1_000):
            for field in ("stdout", "stderr", "is_cut", "state"):
                found[f"job {job.name} output of {row.index}: {field}"] = getattr(row, field)
        bill = client.usage(job=job.job)
        found[f"bill of {job.name}: subtasks"] = sum(row.subtasks for row in bill)
        found[f"bill of {job.name}: failed"] = sum(row.failed for row in bill)
        # One micro-credit for each microsecond of cpu, which is measured: what is left is exact.
        amount, cpu_us = sum(r.amount_ucredits for r in bill), sum(r.cpu_us for r in bill)
        found[f"bill of {job.name}: amount without cpu"] = amount - cpu_us
        spent, meter = spent + amount, meter + cpu_us
        assert amount == job.spent_ucredits, f"{job.name}: billed {amount}, says {job}"
    balance = client.balance(everyone=True)
    found["balances: sum"] = balance.sum_ucredits
    nodes = toll = 0
    for row in balance.accounts:
        if row.name.startswith("node:"):
            nodes += row.posted_ucredits
        elif row.name == "toll":
            toll = row.posted_ucredits
        elif row.name.startswith("tenant:"):
            found[f"balances: {row.name} without cpu"] = row.posted_ucredits + meter
            found[f"balances: {row.name} held"] = row.held_ucredits
    found["balances: nodes and toll without cpu"] = nodes + toll - meter
    assert nodes + toll == spent
    return found


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Every fact that is not the same, in the order in which they were found."""
    return [
        f"{name}: {expected.get(name)!r} without faults, {found.get(name)!r} with"
        for name in dict.fromkeys([*expected, *found])
        if expected.get(name) != found.get(name)
    ]


@contextlib.contextmanager
def settlement(ledger: str) -> Iterator[Line]:
    """A settlement's line to the ledger, which takes every voucher."""
    line: Line

    def take(voucher: chain.ShowVoucher) -> None:
        shown = chain.Shown(voucher.cumulative, 0)
        line.tell(chain.VoucherRuling(voucher.request, "", "", shown))

    line = Line(ledger, SigningKey(b"s" * 32), "", shown=take)
    try:
        yield line
    finally:
        line.close()


def live(fault: Fault) -> tuple[dict[str, Any], Injector, HttpFaults]:
    """A grid with every link through an injector; what became of the work."""
    injector = Injector(fault)
    grid = Grid.temporary(workers=1, slots=4, environment=ENVIRONMENT, payments="")
    with (
        ChaosProxy(grid.address) as front_proxy,
        ChaosProxy(grid.back) as back_proxy,
        ChaosProxy(f"ipc://{grid.run}/ledger") as ledger_proxy,
        HttpFaults(grid.run / "store", fault, LATE_S) as store,
    ):
        for proxy, link in zip((front_proxy, back_proxy, ledger_proxy), LINKS, strict=True):
            proxy.plan = injector.plan(link)
        grid.options["worker"] = ["--broker", back_proxy.address]
        grid.options["broker"] = ["--ledger", ledger_proxy.address, "--store", store.address]
        grid.options["treasury"] = ["--ledger", ledger_proxy.address]
        with grid, settlement(ledger_proxy.address) as line:
            with Client(grid.address) as look:
                with Client(front_proxy.address, timeout=60.0, warn=lambda _: None) as client:
                    seen = work(Hands(client, look, line))
                    until("the worker is there", look.workers)
                    client.release("worker-0")  # it is in no quarantine: that changes nothing
                    with pytest.raises(GridError, match="this grid has no registry"):
                        client.operate(encode(AskRows(1, "nodes")))
                    client.drain("worker-0")
                    until("the worker has drained", grid.dead)
                injector.is_over = True
                until("the ledger has everything", lambda: look.grid()["outbox"] == 0)
                found = {f"seen: {name}": value for name, value in seen.items()} | facts(look)
    return found, injector, store


Lives = Callable[[Fault], tuple[dict[str, Any], Injector, HttpFaults]]


@pytest.fixture(scope="module")
def lives(request: pytest.FixtureRequest) -> Iterator[Lives]:
    """A life without faults, and one with each fault that a selected test wants.

    Two at a time: the one with losses waits for most of its time.
    """
    chosen = [getattr(item, "callspec", None) for item in request.session.items]
    wanted = [spec.params["fault"] for spec in chosen if spec and "fault" in spec.params]
    with ThreadPoolExecutor(2) as pool:
        running = {fault: pool.submit(live, fault) for fault in [*wanted[:1], "none", *wanted[1:]]}
        yield lambda fault: running[fault].result()


@pytest.mark.parametrize("fault", ["drop", "duplicate", "delay"])
def test_a19_faults_between_processes_leave_no_trace(
    fault: Fault, lives: Lives, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    expected, _, calm_store = lives("none")
    kinds = messages = requests = 0
    for repetition in range(sized(1, 5)):  # what is injected is the same, who is first is not
        found, injector, store = live(fault) if repetition else lives(fault)
        untouched = every_kind() - set(injector.hit)
        assert not untouched, f"never hit: {sorted(untouched)}"
        assert set(store.hit) >= set(calm_store.kinds) >= {"GET", "PUT"}
        differs = differences(expected, found)
        assert not differs, "differs first: " + "\n".join(differs[:20])
        kinds = len(injector.hit)
        messages, requests = messages + injector.hit.total(), requests + store.hit.total()
    figures(kinds=kinds, messages_hit=messages, store_requests_hit=requests, facts=len(expected))


def test_a19_a_fact_that_differs_is_named() -> None:
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        "b: 2 without faults, 3 with",
        "c: None without faults, 4 with",
    ]
