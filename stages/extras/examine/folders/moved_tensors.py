"""Matrices that are the start's in another place, order or size: no training makes such ones."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.evaluation.stored_tensors import StoredTensors, spread
from stages.extras.examine.folders.difference import NONE, Difference, Level
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.tensor_statistics import TensorFigures

SAME_DIRECTION = 0.9  # a cosine that two matrices have by no chance
NAMED = 4  # turned matrices that are looked for elsewhere in the start
SEARCHED = 64  # matrices of the start among which each is looked for
SAMPLED_ROWS = 16
LARGEST = 1 << 26  # elements of a matrix whose rows are put into other orders
HEAD_SIZES = (8, 16, 32, 64, 96, 128, 256)
LARGER_MATRIX, LARGER_VECTOR = 1.25, 1.5  # times the start's length, or its inverse


def moved_differences(
    old: StoredTensors, new: StoredTensors, turned: Sequence[TensorFigures]
) -> list[Difference]:
    """Return what some turned matrices are of the start."""
    clauses = list[str]()
    for figures in turned[:NAMED]:
        place = place_in_start(old, new, figures.name)
        if place:
            clauses.append(f"{figures.name} is {place}")
    if not clauses:
        return []
    return [row_difference("weights: moved", NONE, "; ".join(clauses), Level.breaks)]


def place_in_start(old: StoredTensors, new: StoredTensors, name: str) -> str:
    """Return what a matrix is of the start, as `the start's, transposed`; '' if nothing like it is there."""
    if name not in old or old.shapes[name] != new.shapes[name] or len(new.shapes[name]) != 2:
        return ""
    matrix = new.matrix(name)
    if old.size(name) <= LARGEST:
        for title, order in other_orders(old.matrix(name)):
            if cosine(matrix, order) >= SAME_DIRECTION:
                return f"the start's, {title}"
    sample = matrix[:SAMPLED_ROWS]
    alike = [each for each in old.shapes if old.shapes[each] == new.shapes[name] and each != name]
    for other in spread(sorted(alike), SEARCHED):
        if cosine(sample, old.first_rows(other, SAMPLED_ROWS)) >= SAME_DIRECTION:
            return f"the start's {other}"
    return ""


def other_orders(matrix: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield orders of a matrix that conversions between formats make by mistake."""
    yield "with the other sign", -matrix
    if matrix.shape[0] == matrix.shape[1]:
        yield "transposed", matrix.T
    for shift in (1, -1):
        yield f"its rows moved by {shift:+d}", matrix.roll(shift, 0)
    rows, columns = matrix.shape
    for size in HEAD_SIZES:
        if rows % size:
            continue
        heads = matrix.view(rows // size, size, columns)
        yield "its heads in reverse", heads.flip(0).reshape(matrix.shape)
        halves = heads.view(-1, 2, size // 2, columns).transpose(1, 2)
        yield "its rows in the order of other rotary positions", halves.reshape(matrix.shape)
        pairs = heads.view(-1, size // 2, 2, columns).transpose(1, 2)
        yield "its rows in the order of other rotary positions", pairs.reshape(matrix.shape)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.cosine_similarity(first.flatten(), second.flatten(), 0))


def scaled_differences(shared: Sequence[TensorFigures]) -> list[Difference]:
    """Return the tensors that have the start's direction and another length."""
    scaled = list[tuple[float, str]]()
    for each in shared:
        assert each.before
        if not each.before.square or not each.square or each.cosine < SAME_DIRECTION:
            continue
        times = (each.square / each.before.square) ** 0.5
        limit = LARGER_MATRIX if each.is_matrix else LARGER_VECTOR
        if not 1 / limit < times < limit:
            scaled.append((times, each.name))
    if not scaled:
        return []
    times, name = max(scaled, key=distance_from_one)
    text = f"{len(scaled)} of {len(shared)} tensors, as {name}: {times:.3g} times"
    return [row_difference("weights: length", NONE, text, Level.changes)]


def distance_from_one(scaled: tuple[float, str]) -> float:
    times, _ = scaled
    return max(times, 1 / times)


def constant_differences(
    old: StoredTensors, new: StoredTensors, shared: Sequence[TensorFigures]
) -> list[Difference]:
    """Return the vectors that hold one value where the start's hold many, as before any training."""
    constant = list[str]()
    for each in shared:
        is_vector = not each.is_matrix and each.elements > 1
        if is_vector and is_constant(new, each.name) and not is_constant(old, each.name):
            constant.append(each.name)
    if not constant:
        return []
    vectors = sum(1 for each in shared if not each.is_matrix)
    text = f"{len(constant)} of {vectors} vectors, as {constant[0]}"
    return [row_difference("weights: one value", NONE, text, Level.changes)]


def is_constant(tensors: StoredTensors, name: str) -> bool:
    vector = tensors.matrix(name)
    return bool((vector == vector[0, 0]).all())
