"""Values that refer to others of their row: the name of a column, a place in a list of answers, or the value of a column
such as `model_a`."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from stages.formats.columns import Path, normal_name
from stages.formats.turns import is_empty

SIDES = ("chosen", "rejected")


class Resolved(NamedTuple):
    """The values, by role, that references stand for, the columns that they were found in, and what is wrong with
    them: a name alone is no answer."""

    values: dict[str, Any]
    columns: tuple[str, ...] = ()
    error: str = ""


def resolve(
    row: Mapping[str, Any],
    values: Mapping[str, Any],
    paths: Mapping[str, Path],
    columns: Collection[str],
) -> Resolved:
    """Return what the chosen and the rejected answer, or the preference, of a row refer to. `columns`: of the file."""
    if {*SIDES} <= values.keys():
        return answers_meant(row, values["chosen"], values["rejected"], columns)
    if {"a", "b", "preference"} <= values.keys():
        return side_meant(row, values["preference"], paths["a"], paths["b"])
    return Resolved({})


def answers_meant(
    row: Mapping[str, Any], chosen: Any, rejected: Any, columns: Collection[str]
) -> Resolved:
    """Return the answers if both are names of columns, or both are places in the row's only list of texts. A row may
    lack a column of its file."""
    sides = (chosen, rejected)
    named = [side for side in sides if isinstance(side, str) and side in columns]
    if named and (len(named) == 1 or any(is_empty(row.get(column)) for column in named)):
        reason = f"chosen or rejected names the column {named[0]!r}, but both must name a text"
        return Resolved({}, error=reason)
    if named:
        return Resolved({"chosen": row[chosen], "rejected": row[rejected]}, sides)
    if not all(type(side) is int or (isinstance(side, str) and side.isdecimal()) for side in sides):
        return Resolved({})
    lists = [column for column, value in row.items() if is_texts(value)]
    places = [int(side) for side in sides]
    if len(lists) != 1 or not all(0 <= place < len(row[lists[0]]) for place in places):
        return Resolved({})
    answers = row[lists[0]]
    if chosen in answers:  # the texts are numbers
        return Resolved({})
    meant = {side: answers[place] for side, place in zip(SIDES, places, strict=True)}
    return Resolved(meant, (lists[0],))


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def side_meant(row: Mapping[str, Any], preference: Any, a: Path, b: Path) -> Resolved:
    """Return left or right if the preference is the value of a column of that side alone, such as a model's name."""
    if not isinstance(preference, str) or not isinstance(a, str) or not isinstance(b, str):
        return Resolved({})
    left, right = columns_of_sides(tuple(row), normal_name(a), normal_name(b))
    is_left = preference in [row[column] for column in left]
    is_right = preference in [row[column] for column in right]
    if is_left == is_right:
        return Resolved({})
    return Resolved({"preference": "left" if is_left else "right"}, (*left, *right))


@lru_cache(maxsize=1000)
def columns_of_sides(columns: tuple[str, ...], a: str, b: str) -> tuple[list[str], list[str]]:
    """Return the columns of each of two answers: those whose names end as the names of the answers do."""
    names = {normal_name(column): column for column in columns}
    left = [name for name in names if name[-1:] == a[-1:] and name[:-1] + b[-1:] in names]
    return [names[name] for name in left], [names[name[:-1] + b[-1:]] for name in left]
