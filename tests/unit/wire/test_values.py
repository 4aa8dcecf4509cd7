"""Values come back exactly as they went, in type and in content, or are refused."""

import array
import pickle

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.wire import values
from gristmill.wire.errors import RemoteError

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
)


def same(left: object, right: object) -> bool:
    """Equality that tells 1, 1.0 and True apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        assert isinstance(right, list | tuple)
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@given(st.lists(SCALARS, min_size=1, max_size=50))
def test_scalars_travel_exactly(items):
    packed = values.pack_plain(items)
    assert packed is not None
    assert same(values.unpack(*packed, len(items)), items)


@given(st.data(), st.integers(1, 6), st.integers(1, 20))
def test_flat_tuples_of_one_shape_travel_exactly(data, width, height):
    kinds = [
        data.draw(st.sampled_from([st.integers(-9, 9), st.text(max_size=5), st.booleans()]))
        for _ in range(width)
    ]
    items = [tuple(data.draw(kind) for kind in kinds) for _ in range(height)]
    packed = values.pack_plain(items)
    assert packed is not None and packed[0].startswith("t:(")
    assert same(values.unpack(*packed, height), items)


FIELDS = st.lists(st.sampled_from([1, "a", True, None, (1,)]), max_size=3).map(tuple)


@given(st.lists(FIELDS, min_size=1, max_size=4))
def test_tuples_of_several_shapes_are_never_taken_for_one(items):
    shapes = {tuple(map(type, item)) for item in items}
    is_flat = shapes != {()} and not any(tuple in shape for shape in shapes)
    assert (values.pack_plain(items) is not None) == (len(shapes) == 1 and is_flat)


@pytest.mark.parametrize(
    ("items", "codec"),
    [
        ([1, 2, 3], "q"),
        ([1.0, 2.5], "d"),
        ([1, 2.5], "m"),
        ([True, False], "m"),
        ([(1, "a"), (2, "b")], "t:(is)"),
        (["a", None], "m"),
    ],
)
def test_the_cheapest_exact_codec_is_chosen(items, codec):
    packed = values.pack_plain(items)
    assert packed is not None and packed[0] == codec


class Sub(int):
    """An int that is more than an int."""


@pytest.mark.parametrize(
    "items",
    [
        [1 << 64],
        [(1, [2])],
        [(1, 2), (1, 2, 3)],
        [(1, 2), (1,), (1, 2, 3)],
        [(1,), ("a",)],
        [Sub(3)],
        [{"a": 1}],
        [object],
        ["\ud800"],
        [()],
    ],
)
def test_what_would_change_on_the_way_is_left_to_pickle(items):
    assert values.pack_plain(items) is None


def test_safe_rule_takes_nested_plain_values_and_names_the_first_that_is_not():
    items = [{"a": [1, 2.5, None, b"x"]}, [["y"]]]
    assert same(values.unpack(*values.pack_safe(items), 2), items)
    with pytest.raises(TypeError, match="type tuple"):
        values.pack_safe([[1], [(1, 2)]])
    with pytest.raises(TypeError, match="safe rule"):
        values.pack_safe([{1: 2}])


def test_a_pickle_is_refused_without_a_loader_and_opened_with_one():
    frame = pickle.dumps([{1, 2}])
    with pytest.raises(RemoteError) as caught:
        values.unpack("p", frame, 1)
    assert caught.value.code == "UNSAFE_RESULT"
    assert values.unpack("p", frame, 1, pickle.loads) == [{1, 2}]


@pytest.mark.parametrize(
    ("codec", "frame"),
    [
        ("q", b"1234567"),
        ("q", b""),
        ("m", b"\xc1"),
        ("m", b"\x93\x01"),
        ("t:(is)", b"\x91\x92\x01\x02"),
        ("t:(zz)", b"\x90"),
        ("t:", b"\x90"),
        ("t:((((((", b"\x90"),
        ("range", b"short"),
        ("nope", b""),
        ("m", b"\x92\x01\x02"),
    ],
)
def test_a_frame_that_is_not_what_it_says_is_malformed(codec, frame):
    with pytest.raises(RemoteError) as caught:
        values.unpack(codec, frame, 1)
    assert caught.value.code == "MALFORMED"


@given(st.binary(max_size=60), st.sampled_from(["q", "d", "m", "t:(is)", "range", "p", "r", "x"]))
def test_no_bytes_of_a_peer_raise_anything_but_remote_error(frame, codec):
    try:
        values.unpack(codec, frame, 3)
    except RemoteError:
        pass


@given(st.integers(-1000, 1000), st.integers(-5, 5), st.integers(0, 50))
def test_a_range_is_its_progression(start, step, count):
    expected = [start + step * i for i in range(count)]
    assert values.unpack(*values.pack_range(start, step), count) == expected


def test_rows_keep_dtype_shape_and_bytes():
    raw = array.array("d", [1.0, 2.0, 3.0, 4.0]).tobytes()
    dtype, shape, rows = values.split_rows(values.join_rows("<f8", (2,), raw))
    assert (dtype, shape, bytes(rows)) == ("<f8", (2,), raw)
    with pytest.raises(RemoteError):
        values.split_rows(b"\xff\xff\xff\xff")


def test_a_reference_survives_and_rubbish_does_not():
    ref = values.BlobRef("a" * 64, 70_000)
    assert values.decode_ref(values.encode_ref(ref)) == ref
    with pytest.raises(RemoteError):
        values.decode_ref(b"\x00")


ALIKE = [
    numpy.arange(6.0).reshape(2, 3),
    numpy.arange(6, dtype=">i4").reshape(3, 2).T,
    numpy.array(["a", "bcd"]),
    numpy.array(["2024-01-01"], "M8[s]"),
    numpy.array([True]),
    numpy.empty((0, 3)),
]


@pytest.mark.parametrize("value", ALIKE, ids=lambda value: value.dtype.str)
def test_arrays_alike_are_rows(value):
    codec, frame = values.pack_rows([value, value])
    dtype, shape, raw = values.split_rows(frame)
    assert (codec, numpy.dtype(dtype), shape) == ("r", value.dtype, value.shape)
    assert bytes(raw) == 2 * value.tobytes(order="C")


@pytest.mark.parametrize(
    "unlike",
    [
        [numpy.zeros(2), numpy.zeros(3)],
        [numpy.zeros(2), numpy.zeros(2, "f4")],
        [numpy.zeros(2), [0.0, 0.0]],
        [numpy.array([{}])],
        [numpy.zeros(2, [("a", "i4"), ("b", "f8")])],
        [numpy.array(5.0)],
        [numpy.float64(5.0)],
        [numpy.ma.array([1.0], mask=[True])],
    ],
    ids=lambda unlike: repr(unlike)[:40],
)
def test_what_rows_would_change_is_none(unlike):
    assert values.pack_rows(unlike) is None


def test_numpy_scalars_are_rows_only_where_that_is_asked_for():
    assert values.pack_rows([numpy.int32(4), numpy.int32(5)]) is None
    assert values.pack_rows([numpy.int32(4), numpy.int32(5)], has_scalars=True)[0] == "r"
