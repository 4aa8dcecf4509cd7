"""Messages with a pickle in place of one of their texts or bytes, for each of these in turn.

``messages`` walks the types of a dialogue as msgspec sees them: every list has an element of each
kind that it may have, every optional part is there. Each text, each bytes, each literal and each
raw value is a place; a message has the pickle in one place and what is right in all others.
"""

import dataclasses
import pathlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect

_encode = msgspec.msgpack.Encoder().encode


@dataclasses.dataclass(eq=False)
class Place:
    """Where a pickle can stand; ``right``: what stands there otherwise."""

    path: str
    is_text: bool
    right: Any


@dataclasses.dataclass(frozen=True)
class Payload:
    """Pickles that make a folder when they are opened, each of another protocol.

    ``text`` is of protocol 0, which is ASCII: it fits where a text belongs.
    """

    marker: pathlib.Path

    @property
    def text(self) -> str:
        return f"cos\nmkdir\n(V{self.marker}\ntR."

    @property
    def frames(self) -> list[bytes]:
        made = [pickle.dumps(_Call(str(self.marker)), protocol) for protocol in (0, 2, 5)]
        return [self.text.encode(), *made]


class _Call:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        import os

        return os.mkdir, (self.path,)


def tree(kind: Any, known: Mapping[str, Any], path: str = "") -> Any:
    """A value of this type with a ``Place`` for everything that a pickle could be put for.

    Args:
        known: by the name of a field, what is right there, or what makes it anew each time:
            without it nothing gets far.
    """
    if isinstance(kind, inspect.Metadata):
        return tree(kind.type, known, path)
    if isinstance(kind, inspect.StructType):
        return _struct(kind, known, path)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType):
        inner = kind.item_type
        alternatives = inner.types if isinstance(inner, inspect.UnionType) else (inner,)
        return [tree(one, known, f"{path}[]") for one in alternatives]
    if isinstance(kind, inspect.TupleType):
        return [tree(one, known, f"{path}[{n}]") for n, one in enumerate(kind.item_types)]
    if isinstance(kind, inspect.DictType):
        key = Place(f"{path}.key", True, "k")
        return [_Pair(key, tree(kind.value_type, known, f"{path}.value"))]
    if isinstance(kind, inspect.UnionType):
        real = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return tree(real[0], known, path)
    if isinstance(kind, inspect.LiteralType):
        return Place(path, True, kind.values[0])
    if isinstance(kind, inspect.StrType):
        return Place(path, True, "")
    if isinstance(kind, inspect.BytesType):
        return Place(path, False, b"")
    if isinstance(kind, inspect.RawType | inspect.AnyType):
        return Place(path, False, None)
    if isinstance(kind, inspect.BoolType):
        return False
    assert isinstance(kind, inspect.IntType), kind
    return 1


@dataclasses.dataclass(eq=False)
class _Pair:
    key: Place
    value: Any


@dataclasses.dataclass(eq=False)
class _Map:
    items: dict[str, Any]


def _struct(kind: inspect.StructType, known: Mapping[str, Any], path: str) -> Any:
    path = f"{path}.{kind.cls.__name__}".lstrip(".")
    made = {}
    for field in kind.fields:
        at = f"{path}.{field.name}"
        made[field.encode_name] = tree(field.type, known, at)
        right = known.get(field.name)
        if right is None and field.default is not inspect.NODEFAULT:
            right = field.default
        if right is None:
            continue
        if isinstance(made[field.encode_name], Place):
            made[field.encode_name].right = right
        elif isinstance(right, int):
            made[field.encode_name] = right
        elif isinstance(right, str) and isinstance(made[field.encode_name], list):
            for one in places(made[field.encode_name]):  # of a list of texts, or of a map
                one.right = right
    if kind.array_like:
        return [*([] if kind.tag is None else [kind.tag]), *made.values()]
    return _Map({**({} if kind.tag is None else {kind.tag_field or "type": kind.tag}), **made})


def places(value: Any) -> Iterator[Place]:
    """Every place of a tree."""
    if isinstance(value, Place):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from places(one)
    elif isinstance(value, _Pair):
        yield value.key
        yield from places(value.value)
    elif isinstance(value, _Map):
        for one in value.items.values():
            yield from places(one)


def filled(value: Any, place: Place | None, payload: Any) -> Any:
    """A tree as plain values, with the payload in this place."""
    if isinstance(value, Place):
        if value is place:
            return payload
        return value.right() if callable(value.right) else value.right
    if isinstance(value, list):
        if value and isinstance(value[0], _Pair):
            return {
                filled(one.key, place, payload): filled(one.value, place, payload) for one in value
            }
        return [filled(one, place, payload) for one in value]
    if isinstance(value, _Map):
        return {name: filled(one, place, payload) for name, one in value.items.items()}
    return value


def messages(kind: Any, payload: Payload, known: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """(place, header frame) for each place of a message and each pickle that can stand there."""
    made = tree(inspect.type_info(kind), known)
    for place in places(made):
        several: list[Any] = [payload.text] if place.is_text else list(payload.frames)
        for one in several:
            yield place.path, _encode(filled(made, place, one))
    for frame in payload.frames:  # and for all of it
        yield f"{kind.__name__} itself", frame
