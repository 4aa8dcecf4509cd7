"""The outbox: every entry once and in order, whatever becomes of the ledger or of us."""

import gristmill.wire.client as wc
import gristmill.wire.ledger as wl


def run_job(client, count=500):
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, count)
    client.close_upload(job, count)
    return job


def billed(ledger, job):
    """Every subtask that was billed, sorted."""
    found = []
    for entry in ledger.entries:
        if isinstance(entry, wl.Contribution) and entry.ref.endswith(f"/{job}"):
            found += range(entry.first, entry.first + entry.count)
    return sorted(found)


def kinds(ledger):
    return [type(entry).__name__ for entry in ledger.entries]


def test_hold_contributions_release(broker):
    ledger = broker.ledger().start()
    broker.start()
    client, worker = broker.client(), broker.worker()
    worker.hello()
    worker.start()
    job = run_job(client)
    client.finish(job)
    broker.until(lambda: kinds(ledger)[-1:] == ["Release"], "the hold is released")
    keys = [entry for entry in ledger.entries if isinstance(entry, wl.Key)]
    others = [entry for entry in ledger.entries if not isinstance(entry, wl.Key)]
    name = client.ask("grid")["broker"]
    assert ledger.entries[0] == keys[0], "its own key comes before anything else"
    assert [(key.kind, key.name) for key in keys] == [("broker", name), ("node", f"{name}/w0")]
    assert keys[1].public == worker.node
    assert isinstance(others[0], wl.Hold)
    assert {type(entry) for entry in others[1:-1]} == {wl.Contribution}
    assert others[0].ref == f"{client.ask('grid')['broker']}/{job}"
    assert billed(ledger, job) == list(range(500))
    assert not ledger.faults
    broker.until(lambda: client.ask("grid")["outbox"] == 0, "the outbox is empty")


def test_nothing_is_lost_or_doubled_when_the_ledger_dies_and_comes_back(broker):
    ledger = broker.ledger().start()
    broker.start(ledger_resend_ms=100, ledger_ttl_ms=400)
    client, worker = broker.client(), broker.worker()
    worker.hello()
    job = run_job(client, 2_000)
    broker.until(lambda: worker.take(0.01) and worker.leases, "the job has its hold")
    ledger.stop()
    worker.start()
    assert client.finish(job).done == 2_000  # held jobs run on
    before = len(ledger.entries)
    broker.until(lambda: not client.ask("grid")["is_ledger_up"], "the ledger is seen down")
    assert client.ask("balance").code == "LEDGER_DOWN"
    waiting = run_job(client, 10)
    card = client.watch(lambda: [c for c in client.cards if c.job == waiting][-1:], "a card")[0]
    assert card.state == "accepted"
    client.watch(
        lambda: "LEDGER_DOWN" in client.ask("job", wc.JobStatus, job=waiting).reason, "the reason"
    )
    broker.kill()  # the outbox is on disk
    broker.start()
    ledger.start()
    again = broker.client()
    again.subscribe(waiting)
    other = broker.worker("w1")
    other.hello()
    other.start()
    assert again.finish(waiting).done == 10
    broker.until(lambda: again.ask("grid")["outbox"] == 0, "the outbox is empty")
    assert before < len(ledger.entries)
    assert billed(ledger, job) == list(range(2_000))
    assert billed(ledger, waiting) == list(range(10))
    assert not ledger.faults


def test_lost_answers_are_asked_for_again(broker):
    ledger = broker.ledger()
    ledger.is_mute = True
    ledger.start()
    broker.start(ledger_resend_ms=50)
    client, worker = broker.client(), broker.worker()
    worker.hello()
    worker.start()
    job = run_job(client, 20)
    ledger.is_mute = False
    broker.until(lambda: client.ask("grid")["is_ledger_up"], "the ledger is up")
    broker.until(lambda: ledger.entries, "the hold was posted")
    assert client.finish(job).done == 20
    before = client.ask("grid")["outbox_resends"]
    ledger.is_mute = True
    second = run_job(client, 20)
    broker.until(lambda: kinds(ledger).count("Hold") == 2, "the second hold was posted")
    broker.until(lambda: client.ask("grid")["outbox_resends"] > before, "it is sent again")
    ledger.is_mute = False
    assert client.finish(second).done == 20
    assert ledger.repeated > 0 and not ledger.faults


def test_a_refused_hold_fails_the_job_with_the_ledgers_words(broker):
    ledger = broker.ledger()
    ledger.refuse["poor"] = ("INSUFFICIENT_CREDITS", "poor has 1 credit; the cap is 1,000")
    ledger.start()
    broker.start()
    client = broker.client(tenant="poor")
    job = run_job(client, 10)
    card = client.finish(job)
    assert card.state == "failed"
    assert "INSUFFICIENT_CREDITS" in card.reason and "poor has 1 credit" in card.reason


def test_the_outbox_is_read_back_when_it_was_long(broker):
    ledger = broker.ledger().start()
    broker.start(ledger_resend_ms=100, ledger_ttl_ms=400)
    client, worker = broker.client(), broker.worker()
    worker.hello()
    job = run_job(client, 1_500)
    broker.until(lambda: worker.take(0.01) and worker.leases, "the job has its hold")
    ledger.stop()
    stop = False
    while not stop:
        worker.take(0.01)
        worker.work_off(split=1)
        client.drain()
        stop = any(card.state == "done" for card in client.cards)
    broker.kill()
    broker.start()  # memory is empty now: everything is read back
    ledger.start()
    again = broker.client()
    broker.until(lambda: again.ask("grid")["outbox"] == 0, "the outbox is empty")
    assert billed(ledger, job) == list(range(1_500))
    assert not ledger.faults


def test_questions_about_money_are_relayed(grid):
    client = grid.client()
    balance = client.ask("balance", wc.BalanceAnswer)
    assert [account.name for account in balance.accounts] == ["local"]
    assert client.ask("usage", list[wc.UsageRow], text="node")[0].key == "node"
    broker = client.ask("grid")["broker"]
    job = client.submit().job
    assert client.ask("usage", list[wc.UsageRow], job=job)[0].key == f"{broker}/{job}"
    unknown = client.ask("usage", job=99)
    assert (unknown.code, unknown.message.partition(" of ")[0]) == ("UNKNOWN_JOB", "no job j99")
    assert client.ask("usage", text="moon").code == "MALFORMED"


def test_a_question_that_was_lost_is_asked_again(broker):
    ledger = broker.ledger().start()
    broker.start(ledger_resend_ms=100, ledger_ttl_ms=30_000)
    client = broker.client()
    broker.until(lambda: client.ask("grid")["is_ledger_up"], "the ledger is up")
    ledger.questions_lost = 1
    assert client.ask("balance", wc.BalanceAnswer).sum_ucredits == 0
    assert ledger.questions_lost == 0


def test_a_verdict_that_is_said_again_is_no_ledger_that_is_behind(broker):
    ledger = broker.ledger().start()
    broker.start(ledger_resend_ms=100)
    client, worker = broker.client(), broker.worker()
    worker.hello()
    worker.start()
    client.finish(run_job(client, 10))
    broker.until(lambda: kinds(ledger)[-1:] == ["Release"], "the hold is released")
    broker.until(lambda: client.ask("grid")["outbox"] == 0, "the outbox is empty")
    name = client.ask("grid")["broker"]
    hold = kinds(ledger).index("Hold")
    piece = wl.Acked(name, 1, [wl.Verdict(hold + 1, ledger.entries[hold].ref)])
    ledger.late = [piece, wl.Acked(name, 1)]  # the second one has lost what it acked
    broker.until(lambda: "ledger is behind" in broker.log.read_text(), "the alarm")
    assert not ledger.late and broker.log.read_text().count("ledger is behind") == 1
