"""Rows of the embedding: new ones that were not trained, and rows that became zero."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.evaluation.folders.difference import Difference, Level
from stages.evaluation.folders.key_effects import row_difference
from stages.evaluation.folders.model_folder import ModelFolder
from stages.evaluation.folders.tensor_names import is_embedding, is_head
from stages.evaluation.folders.tensor_statistics import TensorFigures
from stages.evaluation.stored_tensors import StoredTensors

NEAR_MEAN = 0.1  # of the usual distance of a row from the mean row, as rows have that were added and not trained
SHOWN_TOKENS = 3
NO_ROWS = "none"


def new_row_differences(
    model: ModelFolder, old: StoredTensors, new: StoredTensors
) -> list[Difference]:
    """Return the tokens with new rows in the embedding or in the head that no training has moved: such that are zero, the
    mean of the start's rows, or a copy of another row."""
    tokens = tokens_by_id(model)
    untrained = dict[str, list[str]]()
    for name in sorted(new.files.keys() & old.files.keys()):
        first_new = old.shapes[name][0] if old.shapes[name] else 0
        ids = [i for i in sorted(tokens) if first_new <= i < new.shapes[name][0]]
        if not (is_embedding(name) or is_head(name)) or not ids:
            continue
        rows = new.matrix(name)
        for reason, places in untrained_rows(rows[:first_new], rows[ids]).items():
            untrained.setdefault(reason, [tokens[ids[place]] for place in places])
    if not untrained:
        return []
    text = "; ".join(f"{reason}: {token_list(names)}" for reason, names in untrained.items())
    return [row_difference("weights: untrained rows", NO_ROWS, text, Level.changes)]


def untrained_rows(old: Tensor, new: Tensor) -> dict[str, list[int]]:
    """Return the places of new rows that were not trained, by what they are. Each has the first reason that fits."""
    mean = old.mean(0)
    usual = float((old - mean).norm(dim=1).median())
    places = dict[str, list[int]]()
    for place, row in enumerate(new):
        other_rows = torch.cat([old, new[:place], new[place + 1 :]])
        if not row.any():
            reason = "zero"
        elif float((row - mean).norm()) < NEAR_MEAN * usual:
            reason = "the mean of all rows"
        elif bool((other_rows == row).all(1).any()):
            reason = "copies of another row"
        else:
            continue
        places.setdefault(reason, []).append(place)
    return places


def lost_rows(model: ModelFolder, figures: Sequence[TensorFigures]) -> dict[str, list[int]]:
    """Return by tensor the rows that are zero and were not. New rows have a difference of their own, and rows behind the
    last token fill up the embedding."""
    rows = dict[str, list[int]]()
    for each in figures:
        if not each.is_matrix or each.before is None:
            continue
        lost = [row for row in each.new_zero_rows if row < each.before.rows]
        if is_embedding(each.name) or is_head(each.name):
            tokens = tokens_by_id(model)
            lost = [row for row in lost if row in tokens]
        rows[each.name] = lost
    return rows


def tokens_by_id(model: ModelFolder) -> dict[int, str]:
    return {number: token for token, number in model.tokenizer.get_vocab().items()}


def token_list(tokens: Sequence[str]) -> str:
    first_tokens = ", ".join(tokens[:SHOWN_TOKENS])
    further = len(tokens) - SHOWN_TOKENS
    if further <= 0:
        return first_tokens
    return f"{first_tokens} and {further:,} other{'s' if further > 1 else ''}"
