"""Dataclasses as JSON objects: the fields of a class are the keys of its object, in the same order.

A field's metadata says where its object differs from that:
FLAT: a dict or dataclass whose own keys lie among those of the object, at the field's place.
OMITTED: the key is left out if the field is None.
EMPTY: a field that is None is written as {}."""

from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
FLAT: Mapping[str, bool] = MappingProxyType({"flat": True})
OMITTED: Mapping[str, bool] = MappingProxyType({"omitted": True})
EMPTY: Mapping[str, bool] = MappingProxyType({"empty": True})
NUMBERS = (int, float)


def encode(value: object) -> object:
    """Return a dataclass, and all in it, as values that JSON can hold."""
    if is_dataclass(value) and not isinstance(value, type):
        return encode_fields(value)
    if isinstance(value, dict):
        return {name: encode(each) for name, each in value.items()}
    if isinstance(value, list):
        return [encode(each) for each in value]
    return value


def encode_fields(value: object) -> dict[str, object]:
    """Return a dataclass as a JSON object."""
    kind: type = type(value)
    content = dict[str, object]()
    for field in fields_of(kind):
        of_field = getattr(value, field.name)
        if field.metadata == FLAT:
            content |= cast("dict[str, object]", encode(of_field))
        elif of_field is None and field.metadata == OMITTED:
            continue
        elif of_field is None and field.metadata == EMPTY:
            content[field.name] = {}
        else:
            content[field.name] = encode(of_field)
    return content


def decode(kind: type[T], value: object) -> T:
    """Return a JSON value as `kind`. Raise ValueError, with the key's path, if it has another shape."""
    return cast("T", read(kind, value, ""))


def read(kind: object, value: object, path: str) -> object:
    """Return a JSON value as a type: a dataclass, a dict, a list, a union, a plain type, or `object` for any value."""
    origin = get_origin(kind)
    if kind is object:
        return value
    if origin in (Union, UnionType):
        return read_union(get_args(kind), value, path)
    if isinstance(kind, type) and is_dataclass(kind):
        return read_object(kind, cast("dict[str, object]", require(dict, value, path)), path)
    if origin is dict:
        content = cast("dict[str, object]", require(dict, value, path))
        return {
            name: read(get_args(kind)[1], each, at(path, name)) for name, each in content.items()
        }
    if origin is list:
        elements = cast("list[object]", require(list, value, path))
        return [read(get_args(kind)[0], each, at(path, str(i))) for i, each in enumerate(elements)]
    return require(NUMBERS if kind is float else cast("type", kind), value, path)


def read_union(kinds: tuple[object, ...], value: object, path: str) -> object:
    """Return a JSON value as the first of several types that it fits."""
    if value is None and NoneType in kinds:
        return None
    problem = ValueError(f"{path} is null")
    for kind in kinds:
        if kind is not NoneType:
            try:
                return read(kind, value, path)
            except ValueError as error:
                problem = error
    raise problem


def read_object(kind: type, content: dict[str, object], path: str) -> object:
    """Return a JSON object as a dataclass."""
    further = {name: each for name, each in content.items() if name not in keys_of(kind)}
    values = dict[str, object]()
    for field in fields_of(kind):
        hint = hints_of(kind)[field.name]
        if field.metadata == FLAT and is_dataclass(hint):
            flat_keys = keys_of(cast("type", hint))
            inner = {name: each for name, each in content.items() if name in flat_keys}
            values[field.name] = read(hint, inner, path)
        elif field.metadata == FLAT:
            values[field.name] = read(hint, further, path)
            further = {}
        elif field.name in content:
            is_none = field.metadata == EMPTY and content[field.name] == {}
            value = None if is_none else content[field.name]
            values[field.name] = read(hint, value, at(path, field.name))
        elif field.metadata == OMITTED:
            values[field.name] = None
        else:
            raise ValueError(f"{at(path, field.name)} is missing")
    if further:
        raise ValueError(f"{at(path, next(iter(further)))} is unknown")
    return kind(**values)


def require(kind: type | tuple[type, ...], value: object, path: str) -> object:
    """Return a value of a plain type. Raise ValueError for another one: true and false are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{path or 'the content'} is {type(value).__name__}")
    return value


def at(path: str, name: str) -> str:
    """Return the path of a key."""
    return f"{path}.{name}" if path else name


@cache
def keys_of(kind: type) -> frozenset[str]:
    """Return the keys that a dataclass names, also by the dataclasses that lie flat in it."""
    keys = set[str]()
    for field in fields_of(kind):
        hint = hints_of(kind)[field.name]
        if field.metadata != FLAT:
            keys.add(field.name)
        elif is_dataclass(hint):
            keys |= keys_of(cast("type", hint))
    return frozenset(keys)


@cache
def fields_of(kind: type) -> tuple[Field[object], ...]:
    return fields(kind)


@cache
def hints_of(kind: type) -> dict[str, object]:
    return get_type_hints(kind)
