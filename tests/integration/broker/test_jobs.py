"""Jobs through a real broker process: what an ack means, and what comes back."""

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
