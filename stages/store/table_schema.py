"""Tables of records: the schema of a table follows from the types of a dataclass's fields."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pyarrow as pa

PLAIN = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
Int32 = Annotated[int, pa.int32()]
Float32 = Annotated[float, pa.float32()]


def schema_of(kind: Any) -> pa.Schema:
    """Return a schema with a column for every field of a dataclass."""
    return pa.schema([(name, arrow_type(hint)) for name, hint in field_types(kind).items()])


@cache
def field_types(kind: Any) -> dict[str, Any]:
    types = get_type_hints(kind, include_extras=True)
    return {each.name: types[each.name] for each in fields(kind)}


def arrow_type(hint: Any) -> pa.DataType:
    """Return the column type for a field's type: the one in `Annotated`, else the default. Mappings become JSON."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return hint.__metadata__[0]
    if origin is UnionType:
        [inner] = {*inside} - {NoneType}
        return arrow_type(inner)
    if origin is list:
        return pa.list_(arrow_type(inside[0]))
    if origin is dict:
        return pa.string()
    return pa.struct(list(schema_of(hint))) if is_dataclass(hint) else PLAIN[hint]


def table_of(records: Sequence[Any], kind: Any) -> pa.Table:
    columns = dict[str, pa.Array]()
    for name, hint in field_types(kind).items():
        values = [getattr(record, name) for record in records]
        if part := nested_class(hint):
            encode = partial(json.dumps, sort_keys=True)
            values = [
                [convert_dicts(vars(each), part, encode) for each in value] for value in values
            ]
        columns[name] = pa.array(values, arrow_type(hint))
    return pa.table(columns)


def records_of(table: pa.Table | pa.RecordBatch, kind: Any) -> list[Any]:
    """Return the records of a table. If an older table does not have a column, the field gets its default."""
    names, columns = table.schema.names, []
    for name in names:
        values = table[name].to_pylist()
        if part := nested_class(field_types(kind)[name]):
            values = [
                [part(**convert_dicts(each, part, json.loads)) for each in value]
                for value in values
            ]
        columns.append(values)
    return [kind(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def nested_class(hint: Any) -> Any:
    """Return the dataclass that a column's lists contain, or None."""
    return (
        get_args(hint)[0] if get_origin(hint) is list and is_dataclass(get_args(hint)[0]) else None
    )


def convert_dicts(
    values: dict[str, Any], kind: Any, convert: Callable[[Any], Any]
) -> dict[str, Any]:
    """Return the values of a dataclass by field, with those of fields for mappings converted."""
    return {
        k: convert(v) if get_origin(field_types(kind)[k]) is dict else v for k, v in values.items()
    }
