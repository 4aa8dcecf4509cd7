"""Messages of releases before this one still decode: what was added has its default."""

from gristmill.wire import worker

SESSION = bytes(range(16))
#: as written before ``claims`` was added
HELLO = (
    "9f0101a27730d940" + "30" * 64 + "c410" + SESSION.hex() + "02cd07d0ce40000000cf0000010000000000"
    "81a161a16291a36a6f6291a4332e3131a66367726f7570a5302e312e3090"
)


def test_a_hello_without_claims() -> None:
    message = worker.decode_worker.decode(bytes.fromhex(HELLO))
    assert isinstance(message, worker.Hello)
    assert (message.name, message.slots, message.held, message.claims) == ("w0", 2, [], [])
