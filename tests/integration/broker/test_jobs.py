"""Jobs through a real broker process: what an ack means, and what comes back."""

import gristmill.wire.client as wc
from gristmill.wire.frames import encode
from gristmill.wire.values import unpack


def values_of(client, job):  # type: ignore[no-untyped-def]
    found = {}
    for message, frames in client.results:
        if message.job == job:
            values = unpack(message.head.codec, frames[0], message.head.count)
            found.update(
                zip(
                    range(message.head.first, message.head.first + len(values)), values, strict=True
                )
            )
    return found


def test_a_job_from_submit_to_its_last_card(grid):
    client, worker = grid.client(), grid.worker()
    assert worker.hello().worker == 1
    worker.start()
    accepted = client.submit()
    assert accepted.job == 1 and not accepted.is_replayed
    client.subscribe(1)
    client.upload(1, 1_000)
    client.close_upload(1, 1_000)
    card = client.finish(1)
    assert (card.state, card.done, card.count) == ("done", 1_000, 1_000)
    assert values_of(client, 1) == {n: n for n in range(1_000)}
    sequences = [message.sequence for message, _ in client.results]
    assert sequences == list(range(1, card.results + 1))
    assert client.committed[1] == 1_000


def test_a_hello_said_twice_is_one_session(grid):
    client = grid.client()
    first = client.session
    client.hello()
    assert client.session == first and client.ask("grid")["clients"] == 1
    other = grid.client()
    other.id = client.id
    other.hello()  # the same client on another connection: the old one's token is void
    client.send(wc.Ping(first))
    assert client.wait_for(lambda m: isinstance(m, wc.Refused)).code == "REJOIN"


def test_a_late_copy_of_a_cancel_takes_nothing_that_came_after_it(grid):
    client = grid.client()
    job = client.submit().job  # nobody knows yet how much there will be
    client.upload(job, 4)
    cancel = [encode(wc.Cancel(client.session, 901, job, [(2, 1_000)]))]
    client.socket.send_multipart(cancel)
    client.wait_for(lambda m: getattr(m, "request", 0) == 901)
    client.parcel(job, 4, [4, 5, 6, 7])
    client.socket.send_multipart(cancel)
    assert isinstance(client.wait_for(lambda m: getattr(m, "request", 0) == 901), wc.Answer)
    assert client.ask("job", wc.JobStatus, job=job).cancelled == 2


def test_a_late_copy_of_a_pause_does_not_pause_what_was_resumed(grid):
    client = grid.client()
    job = client.submit().job
    client.upload(job, 4)
    pause = [encode(wc.Steer(client.session, 901, job, "pause"))]
    client.socket.send_multipart(pause)
    client.wait_for(lambda m: getattr(m, "request", 0) == 901)
    assert client.ask("job", wc.JobStatus, job=job).state == "paused"
    client.send(wc.Steer(client.session, 902, job, "resume"))
    client.wait_for(lambda m: getattr(m, "request", 0) == 902)
    client.socket.send_multipart(pause)
    assert isinstance(client.wait_for(lambda m: getattr(m, "request", 0) == 901), wc.Answer)
    assert client.ask("job", wc.JobStatus, job=job).state != "paused"
    assert client.ask("grid")["requests_repeated"] == 1


def test_a_late_copy_of_a_refused_submission_stays_refused(grid):
    client = grid.client()
    grid.worker(name="plain").hello(tiers=["batch"])
    spec = grid.function_spec(tier="strict")
    message = wc.Submit(client.session, 901, b"r" * 16, spec)
    client.send(message, grid.function)
    refused = client.wait_for(lambda m: getattr(m, "request", 0) == 901)
    assert refused.code == "TIER_REFUSED"
    grid.worker(name="other").hello(tiers=["strict"])
    client.send(
        message, grid.function
    )  # nobody waits for it: accepted, it would stay open for ever
    assert client.wait_for(lambda m: getattr(m, "request", 0) == 901) == refused
    assert client.ask("grid")["jobs"] == 0
    client.send(wc.Submit(client.session, 902, b"r" * 16, spec), grid.function)
    accepted = client.wait_for(lambda m: getattr(m, "request", 0) == 902)
    assert isinstance(accepted, wc.Accepted)
