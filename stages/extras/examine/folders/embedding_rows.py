"""Rows of the embedding: new ones that were not trained, and rows that became zero."""

from collections.abc import Sequence

from torch import Tensor

from stages.evaluation.stored_tensors import StoredTensors
from stages.extras.examine.folders.difference import NONE, Difference, Level
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.model_folder import ModelFolder
from stages.extras.examine.folders.tensor_names import is_embedding, is_head
from stages.extras.examine.folders.tensor_statistics import TensorFigures, is_comparable

NEAR_MEAN = 0.1  # of the usual distance of a row from the mean row, as rows have that were added and not trained
SHOWN_TOKENS = 3


def new_row_differences(
    model: ModelFolder, old: StoredTensors, new: StoredTensors, figures: Sequence[TensorFigures]
) -> list[Difference]:
    """Return the tokens with new rows in the embedding or in the head that no training has moved: such that are zero, the
    mean of the start's rows, or a copy of another row. Rows that are not finite have a difference of their own."""
    tokens = model.tokens
    all_ids = sorted(tokens)
    untrained = dict[str, list[str]]()
    not_finite = {each.name: {*each.not_finite_rows} for each in figures}
    for name in sorted(new.files.keys() & old.files.keys()):
        before, after = old.shapes[name], new.shapes[name]
        is_of_tokens = is_embedding(name) or is_head(name)
        if not is_of_tokens or len(after) != 2 or not is_comparable(before, after):
            continue
        first_new = before[0]
        ids = [i for i in all_ids if first_new <= i < after[0] and i not in not_finite[name]]
        if not ids:
            continue
        rows = new.matrix(name)
        for reason, places in untrained_rows(rows[:first_new], rows[ids]).items():
            untrained.setdefault(reason, [tokens[ids[place]] for place in places])
    if not untrained:
        return []
    text = "; ".join(f"{reason}: {token_list(names)}" for reason, names in untrained.items())
    return [row_difference("weights: untrained rows", NONE, text, Level.changes)]


def untrained_rows(old: Tensor, new: Tensor) -> dict[str, list[int]]:
    """Return the places of new rows that were not trained, by what they are. Each has the first reason that fits."""
    mean = old.mean(0)
    usual = float((old - mean).norm(dim=1).median())
    places = dict[str, list[int]]()
    for place, row in enumerate(new):
        if not row.any():
            reason = "zero"
        elif float((row - mean).norm()) < NEAR_MEAN * usual:
            reason = "the mean of all rows"
        elif count_copies(old, row) + count_copies(new, row) > 1:  # the row is one itself
            reason = "copies of another row"
        else:
            continue
        places.setdefault(reason, []).append(place)
    return places


def count_copies(rows: Tensor, row: Tensor) -> int:
    return int((rows == row).all(1).sum())


def lost_rows(model: ModelFolder, figures: Sequence[TensorFigures]) -> dict[str, list[int]]:
    """Return by tensor the rows that are zero and were not. New rows have a difference of their own, and rows without a
    token fill up the embedding; if no tokenizer says which these are, all count."""
    rows = dict[str, list[int]]()
    for each in figures:
        if not each.is_matrix or each.before is None:
            continue
        lost = [row for row in each.new_zero_rows if row < each.before.rows]
        if model.tokens and (is_embedding(each.name) or is_head(each.name)):
            lost = [row for row in lost if row in model.tokens]
        rows[each.name] = lost
    return rows


def token_list(tokens: Sequence[str]) -> str:
    first_tokens = ", ".join(tokens[:SHOWN_TOKENS])
    further = len(tokens) - SHOWN_TOKENS
    if further <= 0:
        return first_tokens
    return f"{first_tokens} and {further:,} other{'s' if further > 1 else ''}"
