"""Random histories of money: the broker's and the ledger's real cores, and faults between them.

One history is a few jobs with small caps on two nodes of different classes. Nothing is truthful:
workers claim any cpu and wall time, results come twice and late, by the wrong worker too; workers
are lost and come back with what they held; posts and acks are lost and repeated; the broker ends
before a commit and is rebuilt from what was committed. There are no shells: an effect that goes to
the journal is kept in ``Disk`` when its group is committed, and nothing else survives.

The judge (``History.judge``) knows transfers and contributions only: it adds up by itself.
"""

import random
from collections import Counter
from typing import Any

from gristmill.broker.core import effects as fx
from gristmill.broker.core import events as ev
from gristmill.broker.core import journal_names as names
from gristmill.broker.core import recovery
from gristmill.broker.core.state import Config, State
from gristmill.broker.core.step import step as step_broker
from gristmill.ledger.core import effects as ledger_fx
from gristmill.ledger.core import events as ledger_ev
from gristmill.ledger.core.invariants import check as check_ledger
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.core.step import step as step_ledger
from gristmill.wire.ledger import Contribution, Entry, Hold
from gristmill.wire.meter import Meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Limits, Tariff, toll_of
from gristmill.wire.worker import Claim, Held, LeaseGrant, ResultHead, Returned

UTC = 1_700_000_000_000
CONFIG = Config(broker="b", adopt_ms=200, shun_ms=50, recall_after_ms=20, stint_ms=0)
TARIFFS = {"standard": Tariff(1_000_000, 10, 50_000), "big": Tariff(3_000_000, 70, 400_000)}
LABELS: dict[str, dict[str, str]] = {"mill": {}, "barn": {"class": "big"}}
CLASSES = {"mill": "standard", "barn": "big"}
FUNDS = 2_000_000
STEPS = 44
#: how a result may end; OK mostly
OUTCOMES = (Outcome.OK,) * 6 + (
    Outcome.EXIT, Outcome.BUDGET, Outcome.LOST, Outcome.OOM, Outcome.SETUP,
)  # fmt: skip


class BrokenLawError(AssertionError):
    """A law was broken; the text names it and the seed."""


class Disk:
    """What the broker committed: enough for ``recovery.rebuild``."""

    def __init__(self) -> None:
        self.jobs: dict[int, dict[str, Any]] = {}
        self.outbox: list[Entry] = []

    def write(self, group: list[tuple[fx.AnyEffect, ev.AnyEvent | None]]) -> None:
        last: dict[str, Any] = {}
        for effect, event in group:
            match effect:
                case fx.RecordJob():
                    assert isinstance(event, ev.JobSubmitted)
                    self.jobs[effect.job] = {
                        "job": effect.job, "tenant": effect.tenant, "spec": effect.spec,
                        "submission": effect.submission, "tariffs": event.tariffs,
                        "submitted_utc_ms": effect.now_utc_ms, "parcels": [], "results": [],
                        "cancelled_runs": [], "losses": [], "rescued": [],
                    }  # fmt: skip
                case fx.KeepParcel():
                    fact = recovery.ParcelFact(effect.first, effect.count, effect.codec, 9)
                    self.jobs[effect.job]["parcels"].append(fact)
                case fx.KeepResult():
                    outcomes, wall, cpu = bytes([max(effect.outcome, 0)]), 0, 0
                    if effect.ref:
                        assert isinstance(event, ev.ResultArrived)
                        outcomes = event.meter.outcome or bytes([event.meter.uniform])
                    last = {
                        "sequence": effect.sequence, "first": effect.first, "count": effect.count,
                        "attempt": effect.attempt, "outcomes": outcomes, "wall_us": wall,
                        "cpu_us": cpu, "not_final": effect.not_final, "message": effect.message,
                    }  # fmt: skip
                    self.jobs[effect.job]["results"].append(last)
                case fx.AddToOutbox():
                    self.outbox.append(effect.entry)
                    if isinstance(effect.entry, Contribution):
                        last["amount_ucredits"] = effect.entry.amount_ucredits
                        last["cpu_us"] = effect.entry.cpu_us
                        last["wall_us"] = effect.entry.wall_us
                case fx.RecordState():
                    self.jobs[effect.job]["status"] = effect.status
                case fx.RecordEvent() if effect.job:
                    self._note(self.jobs[effect.job], effect)

    def _note(self, job: dict[str, Any], line: fx.RecordEvent) -> None:
        detail: dict[str, Any] = line.detail
        match line.name:
            case names.HOLD_GRANTED:
                job["is_hold_granted"] = True
            case names.HOLD_REFUSED:
                job["refusal"] = (detail["code"], detail["message"])
            case names.CAP_REACHED:
                job["is_capped"] = True
            case names.CAP_NOTICE:
                job["noticed_percent"] = max(job.get("noticed_percent", 0), detail["percent"])
                job.setdefault("notices", []).append(detail["percent"])
            case names.CANCEL_ASKED:
                job["is_cancelled"] = True
            case names.LEASE_RESCUED:
                job["rescued"].append(detail["lease"])
                if detail.get("cut", -1) >= 0:
                    job["losses"].append((detail["cut"], detail.get("attempt", 0)))

    def facts(self) -> list[recovery.JobFact]:
        made = []
        for job in self.jobs.values():
            fields = {name: value for name, value in job.items() if name != "notices"}
            fields["results"] = [recovery.ResultFact(**result) for result in job["results"]]
            made.append(recovery.JobFact(**fields))
        return made


class Node:
    """A worker: what it was given and has not told all of, and what it told before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0  #: of its session; 0 while it is away
        self.leases: dict[int, tuple[LeaseGrant, list[tuple[int, int]]]] = {}
        self.results = self.reports = 0
        self.told: list[tuple[ResultHead, Meter]] = []


class History:
    """One run; ``run`` raises ``BrokenLawError`` when a law does not hold."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 1_000
        self.incarnation = 1
        self.state = State.new(CONFIG, 1)
        self.disk = Disk()
        self.group: list[tuple[fx.AnyEffect, ev.AnyEvent | None]] = []
        self.ledger = LedgerState()
        self.applied: dict[int, ledger_ev.Applied] = {}
        self.acked = 0
        self.nodes = [Node("mill"), Node("barn")]
        self.sessions = 0
        self.refs = 0
        self.seen: Counter[str] = Counter()
        self.transfers: list[ledger_fx.AddTransfer] = []
        self.booked: list[Contribution] = []
        self.voided: set[int] = set()

    # ------------------------------------------------------------ the parties

    def tell(self, event: ev.AnyEvent) -> None:
        self.take(step_broker(self.state, event, self.now), event)

    def take(self, effects: list[fx.AnyEffect], event: ev.AnyEvent | None) -> None:
        """Leases leave at once; what is for the journal waits for its commit."""
        by_number = {node.number: node for node in self.nodes if node.number}
        for effect in effects:
            match effect:
                case fx.Dispatch():
                    node = by_number.get(effect.worker)
                    if node is not None:
                        node.leases[effect.lease.lease_id] = effect.lease, list(effect.lease.runs)
                case fx.StopLease() | fx.RecallLease():
                    node = by_number.get(effect.worker)
                    if node is not None and self.random.random() < 0.8:
                        node.leases.setdefault(-effect.lease_id, (None, []))  # type: ignore[arg-type]
                case fx.KeepSuperseded():
                    self.seen["superseded"] += 1
                    self.group.append((effect, event))
                case fx.DropWorker():
                    node = by_number.get(effect.worker)
                    if node is not None:
                        node.number = 0
                case _:
                    self.group.append((effect, event))
        if self.random.random() < 0.7:
            self.commit()

    def commit(self) -> None:
        self.disk.write(self.group)
        self.group.clear()

    def post(self) -> None:
        """The outbox from a place that may be before what is acked; the ack may be lost."""
        entries, r = self.disk.outbox, self.random
        first = r.randint(1, self.acked + 1) if r.random() < 0.3 else self.acked + 1
        part = entries[first - 1 : first - 1 + r.choice((1, 3, 100))]
        if not part:
            return
        known = range(first, first + len(part))
        applied = {at: self.applied[at] for at in known if at in self.applied}
        self.seen["entries said again"] += len(applied)
        effects = step_ledger(
            self.ledger, ledger_ev.OutboxReceived("b", first, part, applied), UTC + self.now
        )
        for effect in effects:
            match effect:
                case ledger_fx.AddTransfer():
                    self.transfers.append(effect)
                case ledger_fx.AddContribution():
                    self.booked.append(effect.entry)
                case ledger_fx.CloseHold():
                    self.voided.add(effect.hold.id)
                case ledger_fx.AddEntry():
                    self.applied[effect.sequence] = ledger_ev.Applied(
                        effect.digest, effect.code, effect.message
                    )
                case ledger_fx.RaiseAlarm():
                    raise BrokenLawError(f"seed {self.seed}: the ledger alarms: {effect.message}")
        if broken := check_ledger(self.ledger):
            raise BrokenLawError(f"seed {self.seed}: {broken}")
        if r.random() < 0.25:
            return  # the ack is lost
        ack = effects[-1]
        assert isinstance(ack, ledger_fx.Acknowledge)
        self.acked = max(self.acked, ack.sequence)
        for verdict in ack.verdicts:
            if isinstance(entries[verdict.sequence - 1], Hold):
                job = int(verdict.ref.rpartition("/")[2])
                self.tell(ev.HoldAnswered(job, verdict.code, verdict.message))

    def fund(self) -> None:
        for effect in step_ledger(self.ledger, ledger_ev.CreditsFunded("t", FUNDS, "f"), UTC):
            if isinstance(effect, ledger_fx.AddTransfer):
                self.transfers.append(effect)

    # ------------------------------------------------------------ what may happen

    def submit(self) -> None:
        r = self.random
        number = self.state.job_counter + 1
        count = r.choice((1, 3, 12, 40))
        spec = JobSpec(
            "function", function="0" * 64, count=count, retries=r.choice((0, 0, 2)),
            losses_max=r.choice((0, 2)),
            cap_ucredits=r.choice((1, 33, 34, 300, 20_000, 900_000, 3 * FUNDS)),
            limits=Limits(
                cpus_milli=r.choice((500, 1_000)), memory_bytes=r.choice((1 << 28, 3 << 30)),
                wall_ms=60_000,
            ),
            labels=r.choice(({}, {}, {"class": "big"}, {"class": "standard"})),
        )  # fmt: skip
        self.tell(ev.JobSubmitted(1, 1, "t", b"s%d" % number, spec, TARIFFS, UTC + self.now))
        self.tell(ev.ParcelArrived(1, "t", number, 0, count, "m", 9))

    def join(self, node: Node) -> None:
        """A new session, with what it still holds (a claim that may not be believed)."""
        self.sessions += 1
        node.number, node.results, node.reports = self.sessions, 0, 0
        real = {number: held for number, held in node.leases.items() if number > 0}
        node.leases = {}
        claims = [
            Claim(number, 0, -1, grant.job, grant.attempt, left, grant.budget_ucredits, 10)
            for number, (grant, left) in real.items()
            if left
        ]
        held = [Held(claim.lease_id, 0, -1, 0) for claim in claims]
        self.seen["adopted"] -= sum(lease.is_adopted for lease in self.state.leases.values())
        self.tell(
            ev.WorkerJoined(
                node.number, node.name, node.name, 2, 4_000, 16 << 30, LABELS[node.name],
                ["job"], ["3.11"], "cgroup", held, claims,
            )
        )  # fmt: skip
        self.seen["adopted"] += sum(lease.is_adopted for lease in self.state.leases.values())
        for number in real:
            if number in self.state.leases:
                node.leases[number] = real[number]

    def work(self, node: Node) -> None:
        """A result of a part of a lease; what it claims may be anything."""
        r = self.random
        held = [(number, lease) for number, lease in node.leases.items() if number > 0 and lease[1]]
        if not held:
            return
        number, (grant, left) = r.choice(held)
        first, length = left[0]
        count = r.randint(1, length)
        uniform = r.choice(OUTCOMES)
        column = b""
        if count > 1 and r.random() < 0.3:
            column = bytes(int(r.choice(OUTCOMES)) for _ in range(count))
        self.now += r.choice((0, 1, 20, 400))
        cpu_us, wall_us = (r.choice((0, 900, 25_000, 400_000, 10**12)) for _ in range(2))
        node.results += 1
        head = ResultHead(
            node.results, number, grant.job, first, count, "m", wall_us, cpu_us, 100, "cgroup"
        )
        meter = Meter(count, int(uniform), column, (), (), ())
        left[:1] = [(first + count, length - count)] if count < length else []
        node.told.append((head, meter))
        self.say(node, head, meter)

    def say(self, node: Node, head: ResultHead, meter: Meter) -> None:
        self.refs += 1
        self.seen["results"] += 1
        utc_ms = UTC + self.now
        self.tell(ev.ResultArrived(node.number, head, meter, self.refs, 9, [], utc_ms))

    def repeat(self, node: Node) -> None:
        """A result that was told before, under a new number, by it or by the other node."""
        if not node.told or not node.number:
            return
        head, meter = self.random.choice(node.told)
        speaker = self.random.choice(self.nodes)
        if speaker.number:
            speaker.results += 1
            fields = {name: getattr(head, name) for name in head.__struct_fields__}
            self.say(speaker, ResultHead(**{**fields, "number": speaker.results}), meter)

    def report(self, node: Node) -> None:
        """What it was told to stop goes back, or is not said; the rest is renewed."""
        returned = []
        for number in [number for number in node.leases if number < 0]:
            del node.leases[number]
            lease = node.leases.pop(-number, None)
            if lease is not None and lease[1]:
                returned.append(Returned(-number, list(lease[1]), "stopped"))
        held = [Held(number, 0, -1, 0) for number, lease in node.leases.items() if lease[1]]
        node.reports += 1
        self.tell(ev.WorkerReported(node.number, node.reports, True, [0, 1], held, returned, False))

    def lose(self, node: Node) -> None:
        self.seen["losses"] += 1
        number, node.number = node.number, 0
        self.tell(ev.WorkerLost(number, self.random.random() < 0.3, "test"))

    def restart(self) -> None:
        """The broker ends; what was not committed never was."""
        self.seen["restarts"] += 1
        self.group.clear()
        self.incarnation += 1
        workers = [node.name for node in self.nodes if node.number]
        self.state, effects = recovery.rebuild(
            CONFIG, self.incarnation, self.disk.facts(), self.now, UTC + self.now, workers
        )
        for node in self.nodes:
            node.number = 0
        self.take(effects, None)
        self.commit()

    def cancel(self) -> None:
        if self.state.jobs:
            job = self.random.choice(list(self.state.jobs))
            self.tell(ev.CancelAsked(1, 1, "t", job, []))

    # ------------------------------------------------------------ a history

    def run(self) -> Counter[str]:
        """Random steps, then everything is delivered and judged."""
        r = self.random
        self.fund()
        for node in self.nodes:
            if r.random() < 0.9:
                self.join(node)
        self.submit()
        self.commit()
        self.post()
        for _ in range(STEPS):
            self.step(r.random())
        self.settle()
        self.judge()
        return self.seen

    def step(self, chance: float) -> None:
        r = self.random
        node = r.choice(self.nodes)
        if not node.number:
            if chance < 0.6:
                self.join(node)
            else:
                self.post()
        elif chance < 0.55:
            self.work(node)
        elif chance < 0.72:
            self.post()
        elif chance < 0.80:
            self.repeat(node)
        elif chance < 0.86:
            self.report(node)
        elif chance < 0.90:
            self.lose(node)
        elif chance < 0.93:
            self.restart()
        elif chance < 0.96 and self.state.job_counter < 3:
            self.submit()
        elif chance < 0.97:
            self.cancel()
        else:
            self.now += r.choice((60, 1_100))
            self.tell(ev.TimePassed())

    def settle(self) -> None:
        """No more faults: what is committed arrives."""
        self.commit()
        for _ in range(60):
            if self.acked >= len(self.disk.outbox):
                return
            self.post()
            self.commit()
        raise BrokenLawError(f"seed {self.seed}: the outbox does not drain")

    # ------------------------------------------------------------ the judge

    def judge(self) -> None:
        """Sums of its own: from transfers, contributions and specs alone."""
        balance: Counter[int] = Counter()
        for move in self.transfers:
            if move.kind in (ledger_fx.Kind.POSTED, ledger_fx.Kind.POST):
                balance[move.debit] -= move.amount
                balance[move.credit] += move.amount
        if sum(balance.values()) or any(
            balance[account.id] != account.posted for account in self.ledger.accounts.values()
        ):
            raise BrokenLawError(
                f"seed {self.seed}: accounts {balance} differ from their transfers"
            )
        spent: Counter[str] = Counter()
        billed: set[tuple[str, int, int]] = set()
        for entry in self.booked:
            self.judge_one(entry)
            spent[entry.ref] += entry.amount_ucredits
            for index in range(entry.first, entry.first + entry.count):
                unit = (entry.ref, index, entry.attempt)
                if unit in billed:
                    raise BrokenLawError(f"seed {self.seed}: {unit} is billed twice")
                billed.add(unit)
        for number, job in self.disk.jobs.items():
            self.judge_job(number, job, spent[f"b/{number}"])

    def judge_one(self, entry: Contribution) -> None:
        tariff = TARIFFS[entry.node_class]
        price = tariff.price(entry.cpu_us, entry.subtasks, entry.memory_bytes * entry.wall_us)
        rates = (entry.cpu_second_ucredits, entry.subtask_ucredits, entry.gib_second_ucredits)
        told = (tariff.cpu_second_ucredits, tariff.subtask_ucredits, tariff.gib_second_ucredits)
        if entry.node_class != CLASSES[entry.node] or rates != told:
            raise BrokenLawError(f"seed {self.seed}: {entry.node} is paid as {entry.node_class}")
        if not 0 <= entry.amount_ucredits <= price:
            raise BrokenLawError(
                f"seed {self.seed}: {entry.amount_ucredits} for work worth {price}"
            )
        if entry.toll_ucredits != toll_of(entry.amount_ucredits):
            raise BrokenLawError(f"seed {self.seed}: a toll of {entry.toll_ucredits}")

    def judge_job(self, number: int, job: dict[str, Any], spent: int) -> None:
        cap = job["spec"].cap_ucredits
        results = sum(result.get("amount_ucredits", 0) for result in job["results"])
        if spent > cap or spent != results:
            raise BrokenLawError(
                f"seed {self.seed}: j{number} is billed {spent} for {results}, cap {cap}"
            )
        notices = job.get("notices", [])
        if notices != sorted(set(notices)):
            raise BrokenLawError(f"seed {self.seed}: j{number} had the notices {notices}")
        status = job.get("status")
        reason = status.reason if status is not None else ""
        self.seen["caps reached"] += reason.startswith("CAP_REACHED")
        self.seen["notices"] += len(notices)
        self.seen["billed"] += bool(spent)
        if reason.startswith("CAP_REACHED"):
            final = status.done + status.failed + status.cancelled
            if final != status.count or 100 not in notices:
                raise BrokenLawError(f"seed {self.seed}: j{number} ended at its cap with {status}")
        hold = self.ledger.holds.get(f"b/{number}")
        if hold is not None and status is not None and status.finished_ms and not hold.closed_ms:
            raise BrokenLawError(f"seed {self.seed}: j{number} has ended and its hold is open")
