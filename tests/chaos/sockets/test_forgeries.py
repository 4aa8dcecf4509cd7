"""P8: no worker and no client gets anything by another's lease, session, job or address."""

import itertools
import os
import random
import time
from collections import Counter

import msgspec
import zmq
from sockets_peers import CONTEXT, WorkerPeer, until

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire import limits
from gristmill.wire.frames import encode
from gristmill.wire.ledger import Contribution
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.values import pack_plain, unpack

HEADS = 16  #: forged results in one report
FULL_S = 0.3  #: between two renewals
SUBTASKS = 3_000
FORGED = -1  #: the value of every forged subtask


class Party:
    """Owner, forger and ghost, driven by one thread; who was given which lease."""

    def __init__(self, broker):
        self.owner, self.forger = broker.worker("owner", slots=1), broker.worker("forger", slots=1)
        self.ghost = broker.worker("ghost", slots=1)  # nobody's job: it is given no lease
        assert isinstance(self.owner.hello(), ww.Welcome)
        assert isinstance(self.forger.hello(), ww.Welcome)
        assert isinstance(self.ghost.hello(cpus_milli=1), ww.Welcome)
        self.granted = {}  #: lease id -> name
        self.replays = []  #: whole messages of the owner
        self.full_at = 0.0
        self.done = 0
        self.answers = Counter()

    @property
    def peers(self):
        return (self.owner, self.forger, self.ghost)

    def pump(self):
        """Takes what came, and renews what everybody has."""
        for peer in self.peers:
            if peer.socket.closed:
                continue
            while (message := peer.take(0)) is not None:
                self.answers[getattr(message, "code", "") or type(message).__name__] += 1
            for lease, _ in peer.leases:
                self.granted[lease.lease_id] = peer.name
        if time.monotonic() >= self.full_at:
            self.full_at = time.monotonic() + FULL_S
            for peer in self.peers:
                if not peer.socket.closed:
                    peer.report(is_full=True)

    @property
    def held(self):
        """Subtasks that owner and forger have leases of."""
        leases = (*self.owner.leases, *self.forger.leases)
        return sum(count for lease, _ in leases for _, count in lease.runs)

    def work(self):
        """Owner and forger answer their own leases, honestly; the owner's words are overheard."""
        real = self.owner.socket.send_multipart
        self.owner.send = lambda header, *bodies: (
            self.replays.append([encode(header), *bodies]), real([encode(header), *bodies])
        )  # fmt: skip
        self.done += self.held
        self.owner.work_off()
        del self.owner.send, self.replays[:-20]
        self.forger.work_off()


def forged(random_, party, number):
    """(head, frames) of a result that is not the forger's to give."""
    theirs = [lease for lease, _ in party.owner.leases]
    lease = random_.choice(theirs)
    first, count = random_.choice(lease.runs)
    lease_id, job = lease.lease_id, lease.job
    kind = random_.choice(("its lease", "its range", "before the grant", "an old lease"))
    if kind == "its range" and party.forger.leases:
        lease_id = party.forger.leases[0][0].lease_id
    elif kind == "before the grant":
        lease_id = max(party.granted) + random_.randrange(1, 50)
    elif kind == "an old lease":
        lease_id = random_.choice(list(party.granted))
        if party.granted[lease_id] == party.forger.name:
            lease_id = lease.lease_id
    head = ww.ResultHead(number, lease_id, job, first, count, "q", count, count, 100, "wait4")
    packed = pack_plain([FORGED] * count)
    assert packed
    return kind, head, [packed[1], pack_meter(count, Outcome.OK), b"", b""]


def forge(random_, party, made):
    """A round of forgeries about what the owner has now."""
    forger, ghost = party.forger, party.ghost
    for teller in (forger, ghost):
        heads, bodies = [], []
        for _ in range(HEADS):
            teller.numbers["result"] += 1
            kind, head, frames = forged(random_, party, teller.numbers["result"])
            heads.append(head)
            bodies += frames
            made[f"result by {kind}"] += 1
        teller.report(heads, bodies)
    theirs = [lease for lease, _ in party.owner.leases]
    held = [ww.Held(one.lease_id, 0, one.runs[0][0], 0) for one in theirs]
    returned = [ww.Returned(one.lease_id, one.runs, "drained") for one in theirs]
    for teller in (forger, ghost):
        teller.numbers["report"] += 1
        number, own = teller.numbers["report"], [
            ww.Held(lease.lease_id, 0, -1, 0) for lease, _ in teller.leases
        ]  # fmt: skip
        teller.send(ww.Report(teller.session, number, True, [0], own + held, [], returned))
        made["renewal"] += len(held)
        made["return"] += len(returned)
    for message in party.replays[-4:]:
        forger.socket.send_multipart(message)  # its very bytes, its token, another connection
        made["replay of its bytes"] += 1
        words = ww.decode_worker.decode(message[0])
        for token in (ghost.session, os.urandom(16)):
            spoken = [*message]
            spoken[0] = encode(
                ww.Report(token, words.number, False, [], [], words.results, words.returned)
            )
            (ghost if token == ghost.session else forger).socket.send_multipart(spoken)
            made["replay under another token"] += 1
    if random_.random() < 0.2:
        claims = [
            ww.Claim(one.lease_id, 0, -1, one.job, one.attempt, one.runs, 1 << 40, 1)
            for one in theirs
        ]
        hello = ww.Hello(
            limits.PROTOCOL, ghost.name, ghost.node, ghost.instance, 1, 64_000, 1 << 40, 1 << 40,
            {}, ["batch"], ["3.11.7"], "wait4", "test", held, claims,
        )  # fmt: skip
        ghost.send(hello)  # as after a restart that never was, by one that could serve it
        made["claim"] += len(claims)
        welcome = until(lambda: welcomed(ghost), "it is in")
        assert set(welcome.stop) == {one.lease_id for one in theirs}, "a claim was believed"
        # What it was given of its own goes back unspent, and it is nobody's worker again.
        ghost.send(ww.Goodbye(welcome.session, "leaves"))
        ghost.send(msgspec.structs.replace(hello, cpus_milli=1, held=[], claims=[]))
        ghost.session = until(lambda: welcomed(ghost), "it is in again").session
        ghost.numbers = {"report": 0, "result": 0}
        ghost.leases.clear()


def welcomed(peer):
    """The WELCOME, once it is next."""
    message = peer.take(0.02)
    return message if isinstance(message, ww.Welcome) else None


def forge_as_client(thief, job, made):
    """What another tenant says about the job."""
    for message in (
        wc.Credit(thief.session, job, limits.SUBTASKS_MAX, 1 << 50),
        wc.Credit(thief.session, job, 1 << 60, 0),
        wc.Unsubscribe(thief.session, job),
    ):
        thief.send(message)
        made["credit"] += 1
    for ask in (
        lambda: thief.call(wc.Cancel, job, []),
        lambda: thief.call(wc.Steer, job, "pause"),
        lambda: thief.call(wc.CloseUpload, job, 1),
        lambda: thief.subscribe(job),
    ):
        assert ask().code == "UNKNOWN_JOB"
        made["order to the job"] += 1


def dress_as_owner(peer, back):
    """The peer has the owner's address on the socket: one that can be guessed."""
    peer.socket.close()
    peer.socket = CONTEXT.socket(zmq.DEALER)
    peer.socket.setsockopt(zmq.LINGER, 0)
    peer.socket.setsockopt(zmq.IDENTITY, b"the owner")
    peer.socket.connect(back)


def give_up(broker, party, client, made):
    """The owner leaves with leases; its address and its token are taken by another."""
    owner, rounds = party.owner, 40
    gone = [lease for lease, _ in owner.leases]
    last = owner.session
    owner.send(ww.Goodbye(owner.session, "leaves"))
    until(lambda: client.ask("grid")["workers"] == 2, "it has left")
    owner.socket.close()
    thief = WorkerPeer(broker.back, "thief")
    broker.closers.append(thief.close)

    def took_its_address():
        dress_as_owner(thief, broker.back)
        thief.send(ww.Report(last, 1, True, [0], [], [], []))
        return isinstance(thief.take(0.3), ww.Refused)  # not heard while the owner is there

    until(took_its_address, "its address is free")
    for _ in range(rounds):
        for lease in gone:
            first, count = lease.runs[0]
            packed = pack_plain([FORGED] * count)
            assert packed
            head = ww.ResultHead(
                1_000 + made["after it left"], lease.lease_id, lease.job, first, count, "q", count,
                count, 100, "wait4",
            )  # fmt: skip
            body = [packed[1], pack_meter(count, Outcome.OK), b"", b""]
            for token in (last, party.forger.session, party.ghost.session):
                thief.send(ww.Report(token, 1, False, [], [], [head], []), *body)
                made["after it left"] += 1
                got = thief.receive()
                assert got and isinstance(got[0], ww.Refused) and got[0].code == "REJOIN", got
            party.forger.numbers["result"] += 1
            number = party.forger.numbers["result"]
            party.forger.report([ww.ResultHead(number, *head.__reduce__()[1][1:])], body)
            made["after it left"] += 1
        party.pump()


def test_forged_results_renewals_and_credits_bring_nothing(broker, sized, figures):
    wanted, random_ = sized(10_000, 100_000), random.Random(8)
    ledger = broker.ledger().start()
    broker.start()
    client, thief = broker.client(), broker.client(tenant="mallory")
    party, made = Party(broker), Counter()
    dress_as_owner(party.owner, broker.back)
    assert isinstance(party.owner.hello(), ww.Welcome)
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, SUBTASKS)
    client.close_upload(job, SUBTASKS)
    until(lambda: party.pump() or (party.owner.leases and party.forger.leases), "both have leases")
    for turn in itertools.count():
        forge(random_, party, made)
        if turn % 10 == 0:
            forge_as_client(thief, job, made)
        party.pump()
        client.drain()
        if made.total() >= wanted:
            break
        if turn % 4 == 3 and party.done + party.held <= SUBTASKS - 100:  # there is more for both
            party.work()
            until(lambda: party.pump() or party.owner.leases, "the owner has a lease")
    give_up(broker, party, client, made)

    def finished():
        party.pump()
        party.forger.work_off()
        client.drain()
        return any(card.state == "done" for card in client.cards)

    until(finished, "the job is done", 60)
    # Every value is what its lease's holder said, once; nobody was heard of another's.
    got = Counter()
    for message, bodies in client.results:
        head = message.head
        values = unpack(head.codec, bodies[0], head.count)
        assert values == list(range(head.first, head.first + head.count)), "a forged value"
        got.update(range(head.first, head.first + head.count))
    assert got == Counter(range(SUBTASKS))
    until(lambda: client.ask("grid")["outbox"] == 0, "everything is billed")
    billed = Counter()
    nodes = {peer.node: peer.name for peer in party.peers}
    for entry in ledger.entries:
        if isinstance(entry, Contribution):
            assert nodes[entry.node] == party.granted[entry.lease_id], "billed to the forger"
            billed.update(range(entry.first, entry.first + entry.count))
    assert billed == Counter(range(SUBTASKS)) and not ledger.faults
    told = client.ask("grid")
    results = sum(count for kind, count in made.items() if kind.startswith("result by"))
    assert told["superseded"] >= results, "each was looked at, and kept as what it is"
    assert not made.keys() ^ {
        "result by its lease", "result by its range", "result by before the grant",
        "result by an old lease", "renewal", "return", "replay of its bytes",
        "replay under another token", "claim", "credit", "order to the job", "after it left",
    }  # fmt: skip
    figures(
        forgeries=made.total(), accepted=0, billed_to_forger=0, superseded=told["superseded"],
        rejoins=told["rejoins"], **{kind.replace(" ", "_"): n for kind, n in made.items()},
    )  # fmt: skip
