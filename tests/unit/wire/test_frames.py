"""What peers send is decoded or refused, never trusted."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from gristmill.wire import (
    client,
    failure,
    frames,
    grants,
    ledger,
    limits,
    meter,
    receipts,
    values,
    worker,
)
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.ids import format_job, pack_lease_id, parse_job, parse_subtask, unpack_lease_id
from gristmill.wire.outcome import GRIDS_DOING, OWN_DOING, Outcome
from gristmill.wire.socket import check_listen_address
from gristmill.wire.spec import Command, JobSpec, Limits, Tariff, check_spec, toll_of
from gristmill.wire.units import format_credits, parse_bytes, parse_credits, parse_ms


@given(st.binary(max_size=200))
def test_no_header_of_a_peer_raises_anything_but_malformed(frame):
    for decoder in (client.decode_client, client.decode_broker, worker.decode_worker):
        try:
            decoder.decode(frame)
        except RemoteError as error:
            assert error.code == "MALFORMED"


def test_a_header_over_the_limit_is_refused_with_both_figures():
    with pytest.raises(RemoteError, match=str(limits.HEADER_BYTES_MAX)):
        client.decode_client.decode(b"\x00" * (limits.HEADER_BYTES_MAX + 1))


def test_a_message_shorter_than_its_header_says_is_malformed():
    assert frames.take([1, 2, 3], 1, 2) == [2, 3]
    for start, count in ((2, 2), (0, 4), (0, -1)):
        with pytest.raises(RemoteError):
            frames.take([1, 2, 3], start, count)


@given(st.lists(st.sampled_from(list(Outcome)), min_size=1, max_size=40), st.data())
def test_a_meter_survives(outcomes, data):
    count = len(outcomes)
    column = st.one_of(
        st.just([]), st.lists(st.integers(0, meter.U32_MAX), min_size=count, max_size=count)
    )
    wall, cpu, peak = (data.draw(column) for _ in range(3))
    frame = meter.pack_meter(count, bytes(outcomes), wall, cpu, peak)
    got = meter.unpack_meter(frame, count)
    assert [got.outcome_at(i) for i in range(count)] == outcomes
    assert (list(got.wall_us), list(got.cpu_us), list(got.peak_kib)) == (wall, cpu, peak)
    assert (got.outcome == b"") == (len(set(outcomes)) == 1)


def test_a_meter_saturates_rather_than_wraps():
    frame = meter.pack_meter(2, Outcome.OK, [1 << 40, -3])
    assert list(meter.unpack_meter(frame, 2).wall_us) == [meter.U32_MAX, 0]


@given(st.binary(max_size=60), st.integers(0, 5))
def test_no_meter_of_a_peer_raises_anything_but_malformed(frame, count):
    try:
        meter.unpack_meter(frame, count)
    except RemoteError as error:
        assert error.code == "MALFORMED"


def test_failures_and_logs_survive_and_rubbish_is_malformed():
    failures = [(3, failure.Failure("boom", kind="ValueError", exit_code=2))]
    assert failure.unpack_failures(failure.pack_failures(failures)) == failures
    assert failure.unpack_failures(b"") == [] and failure.pack_failures([]) == b""
    logs = [failure.LogEntry(0, stdout=b"hello", count=4)]
    assert failure.unpack_logs(failure.pack_logs(logs)) == logs
    for unpack in (failure.unpack_failures, failure.unpack_logs):
        with pytest.raises(RemoteError):
            unpack(b"\x91\x01")


def test_a_grant_gives_its_right_and_no_other():
    key = SigningKey.generate()
    grant = grants.Grant("ann", "get", "d" * 64, 100, 2_000, b"n")
    text = grants.sign_grant(grant, key)
    check = key.verify_key
    assert grants.check_grant(text, check, "get", "d" * 64, 100, 1_999) == grant
    wrong = {
        "UNAUTHORISED": [
            (text, SigningKey.generate().verify_key, "get", "d" * 64, 1, 1_000),
            (text, check, "get", "d" * 64, 1, 2_000),
            (text[:-4] + "AAAA", check, "get", "d" * 64, 1, 1_000),
            ("x", check, "get", "d" * 64, 1, 1_000),
            ("", check, "get", "d" * 64, 1, 1_000),
        ],
        "FORBIDDEN": [
            (text, check, "put", "d" * 64, 1, 1_000),
            (text, check, "get", "e" * 64, 1, 1_000),
            (text, check, "get", "d" * 64, 101, 1_000),
        ],
    }
    for code, calls in wrong.items():
        for call in calls:
            with pytest.raises(RemoteError) as caught:
                grants.check_grant(*call)
            assert caught.value.code == code, call


def test_a_receipt_is_its_workers_and_every_field_counts():
    key = SigningKey.generate()
    node = bytes(key.verify_key).hex()
    receipt = receipts.Receipt(
        "b", 1, 2, 3, 4, 1, b"w", b"d", 5, 6, 7, "cgroup", "large", 8, 9, 10, 11
    )  # fmt: skip
    signature = receipts.sign_receipt(receipt, key)
    assert receipts.is_signed(receipt, signature, node)
    assert not receipts.is_signed(receipt, signature, "00" * 32)
    assert not receipts.is_signed(receipt, signature, "no hex")
    for field in receipt.__struct_fields__:
        value = getattr(receipt, field)
        other = value + 1 if isinstance(value, int) else value + value
        changed = msgspec.structs.replace(receipt, **{field: other})
        assert not receipts.is_signed(changed, signature, node), field


def test_a_spec_is_refused_with_every_bad_field_at_once():
    spec = JobSpec("function", retries=-1, priority=10, limits=Limits(memory_bytes=1))
    with pytest.raises(RemoteError) as caught:
        check_spec(spec)
    for field in ("retries", "priority", "limits.memory_bytes", "function"):
        assert field in caught.value.message
    with pytest.raises(RemoteError, match=r"argv is empty"):
        check_spec(JobSpec("command", command=Command([])))
    with pytest.raises(RemoteError, match="must be given"):
        check_spec(JobSpec("command"))
    check_spec(JobSpec("command", command=Command(["true"])))
    check_spec(JobSpec("function", function="a" * 64))


def test_an_unknown_field_of_a_spec_is_an_error():
    header = client.Submit(b"s", 1, b"x" * 16, JobSpec("function", function="a" * 64))
    raw = msgspec.msgpack.decode(frames.encode(header))
    raw[4]["no_such_field"] = 1
    with pytest.raises(RemoteError, match="no_such_field"):
        client.decode_client.decode(msgspec.msgpack.encode(raw))


def test_prices_are_whole_micro_credits_and_the_toll_is_three_percent_rounded_down():
    assert Tariff(1_000_000, 10).price(1_500_000, 3) == 1_500_030
    assert [toll_of(amount) for amount in (0, 1, 33, 34, 100, 101)] == [0, 0, 0, 1, 3, 3]


def test_every_outcome_but_four_is_somebodys_doing():
    nobody = set(Outcome) - OWN_DOING - GRIDS_DOING
    assert nobody == {
        Outcome.CANCELLED,
        Outcome.BUDGET,
        Outcome.RETURNED,
        Outcome.DISPUTED,
    }
    assert not OWN_DOING & GRIDS_DOING


def test_ids_for_people_and_for_the_wire():
    assert unpack_lease_id(pack_lease_id(3, 12345)) == (3, 12345)
    assert parse_job("j17") == parse_job("17") == 17 and format_job(17) == "j17"
    assert parse_subtask("j17/3") == (17, 3) and parse_subtask("17") == (17, None)
    for text in ("", "j", "j0", "-1", "j1x", "j1/x"):
        with pytest.raises(ValueError, match="look like"):
            parse_subtask(text)


def test_units_as_people_write_them():
    assert parse_bytes("1G") == 1 << 30 and parse_ms("1.5h") == 5_400_000
    assert parse_credits("0.000001") == 1 and format_credits(1) == "0.000001"
    for parse, text in ((parse_bytes, "lots"), (parse_ms, "soon"), (parse_credits, "1.2345678")):
        with pytest.raises(ValueError, match="write it as"):
            parse(text)


def test_listening_is_for_loopback_and_own_folders_only(tmp_path):
    tmp_path.chmod(0o700)
    for address in (f"ipc://{tmp_path}/front", "tcp://127.0.0.1:7031", "tcp://[::1]:1"):
        assert check_listen_address(address) == address
    for address in ("tcp://0.0.0.0:1", "tcp://*:1", "tcp://10.0.0.1:1", "tcp://127.0.0.1.evil:1"):
        with pytest.raises(RemoteError) as caught:
            check_listen_address(address)
        assert caught.value.code == "NOT_LOOPBACK"
    tmp_path.chmod(0o755)
    with pytest.raises(RemoteError, match="chmod 700"):
        check_listen_address(f"ipc://{tmp_path}/front")
    with pytest.raises(RemoteError, match="is not an address"):
        check_listen_address("udp://x")


def test_every_error_code_says_what_to_do_next():
    for code, spec in CODES.items():
        assert spec.code == code and spec.meaning and spec.next_move
        assert code in str(RemoteError(code)) and spec.next_move in str(RemoteError(code))


DEEP = b"\x91" * 20_000 + b"\x00"


@pytest.mark.parametrize(
    "decode",
    [
        lambda: values.decode_ref(b"\x93\xa0\x00" + DEEP),
        lambda: values.unpack("m", b"\x91" + DEEP, 1),
        lambda: values.split_rows(b"\xff\x00\x00\x00\x93\xa0\x90" + DEEP),
        lambda: failure.unpack_logs(b"\x91\x9a\x00\xc4\x00\xc4\x00\xa0\xa0\x00\x00\xc2\x01" + DEEP),
        lambda: failure.unpack_failures(
            b"\x91\x92\x00\x9a\xa0\xa0\xa0\xc4\x00\x00\x00\x00\x00\x00" + DEEP
        ),
    ],
)
def test_nesting_without_end_is_malformed_in_skipped_fields_too(decode):
    with pytest.raises(RemoteError, match="MALFORMED"):
        decode()


@pytest.mark.parametrize("count", [-1, limits.RANGE_ITEMS_MAX + 1, 1 << 62])
def test_a_range_of_too_many_values_takes_no_memory(count):
    with pytest.raises(RemoteError, match="MALFORMED"):
        values.unpack("range", bytes(16), count)


@pytest.mark.parametrize("parse", [parse_bytes, parse_ms])
def test_a_number_past_all_floats_is_a_value_error(parse):
    with pytest.raises(ValueError, match="too large"):
        parse("9" * 400)


@pytest.mark.parametrize("number", [limits.INTEGER_MAX + 1, 1 << 63, (1 << 64) - 1, -(1 << 63)])
@pytest.mark.parametrize(
    ("decoder", "message", "at"),
    [
        (client.decode_client, client.Ask(b"", 1, "job", job=7), 4),
        (client.decode_client, client.Cancel(b"", 1, 7, [(0, 7)]), 3),
        (client.decode_client, client.Cancel(b"", 1, 7, [(0, 7)]), (4, 0, 1)),
        (worker.decode_worker, worker.Report(b"", 1, True, [], [worker.Held(7, 0, 0, 0)], [], []),
         (5, 0, 0)),
        (worker.decode_worker, worker.Report(
            b"", 1, False, [], [], [worker.ResultHead(1, 2, 7, 0, 1, "q", 1, 1, 1, "wait4")], []),
         (6, 0, 2)),
        (ledger.decode_to_ledger, ledger.Post("b", 7, []), 2),
    ],
)  # fmt: skip
def test_a_number_that_no_column_can_hold_is_malformed(decoder, message, at, number):
    """With one of these a worker, a client or a peer of the ledger ended the process."""
    plain = msgspec.msgpack.decode(frames.encode(message))
    inner, *path = (plain, at) if isinstance(at, int) else (plain, *at)
    while len(path) > 1:
        inner = inner[path.pop(0)]
    assert inner[path[0]] == 7
    inner[path[0]] = limits.INTEGER_MAX
    decoder.decode(msgspec.msgpack.encode(plain))
    inner[path[0]] = number
    with pytest.raises(RemoteError, match="MALFORMED"):
        decoder.decode(msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    "text",
    ["\u0661", "1e3", "1,000", "-1", "+1", ".5", "", " ", "1.0000001", "nan", "0x1", "1_0"],
)
def test_an_amount_of_credits_is_ascii_digits(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an amount of credits; write it as 12 or 0\.25"):
        parse_credits(text)


@pytest.mark.parametrize("text", ["1152921504606.846977", "9" * 23, "9" * 9_999])
def test_an_amount_of_credits_has_a_limit(text: str) -> None:
    assert parse_credits("1152921504606.846976") == parse_credits("0" * 99 + "1152921504606.846976")
    with pytest.raises(ValueError, match=r"is more than 1,152,921,504,606\.846976 credits"):
        parse_credits(text)
