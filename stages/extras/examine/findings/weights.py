"""Faults of weights: nothing was trained, it is another model's training, an adapter counts twice, rows are untrained."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch

from stages.evaluation.stored_tensors import StoredTensors, as_numbers, spread
from stages.extras.examine.findings.adapter_change import LayerChange, layer_changes
from stages.extras.examine.findings.finding import OF_FILES, Finding, NotEnough
from stages.extras.examine.findings.sides import Examined
from stages.extras.examine.folders.embedding_rows import NEAR_MEAN
from stages.extras.examine.folders.tensor_names import LAYER
from stages.models.loading import locate_output_embedding

COMPARED = 12  # matrices of a model whose directions are compared
# The cosine of a matrix before and after, below which it is no continued training. Trainings at rates that wreck a
# model still have 0.5; matrices of two models have 0.
ALIKE = 0.2
MOST_RANK = 64  # of a change; a larger one is not told apart
NEGLIGIBLE = 1e-3  # of the largest singular value: rounding
SAMPLED = 4096  # rows whose distance is usual


def not_whole(examined: Examined) -> list[Finding]:
    """Find tensors that the model's class has no place for, or tokens without a row."""
    warnings = [each for each in examined.after.warnings if each not in examined.before.warnings]
    return examined.fact("not_whole", warnings[0].rstrip(".") if warnings else "")


def unchanged(examined: Examined) -> list[Finding]:
    """Find a model in which no tensor differs from the start's: no matrix, norm or bias."""
    before, after = (
        StoredTensors.of_folder(side.came) for side in (examined.before, examined.after)
    )
    require_readable(before, after)
    if before.shapes != after.shapes:
        return []
    is_rounded = False
    for name in after.shapes:
        for old, new in zip(before.blocks(name), after.blocks(name), strict=True):
            first, second = as_numbers(old), as_numbers(new)
            if torch.equal(first, second):
                continue
            if not torch.equal(first.bfloat16().float(), second):
                return []
            is_rounded = True
    rounding = ", rounded to bf16" if is_rounded else ""
    seen = f"all {len(after.shapes)} tensors are those of {examined.before.title}{rounding}"
    return examined.fact("unchanged", seen)


def require_readable(before: StoredTensors, after: StoredTensors) -> None:
    """Raise NotEnough if the weights of either model are not in its files, or not all of them can be read."""
    for tensors in (before, after):
        if tensors.problems or not tensors.files:
            problem = "; ".join(tensors.problems[:1]) or "no *.safetensors"
            raise NotEnough(f"not all weights can be read: {problem}. Copy the files again")


def points_elsewhere(examined: Examined) -> list[Finding]:
    """Find a model that is no training of `before`. The reference of a preference loss is the model that the training
    started from, or under an adapter the model below it: if that is not `before`, its reference was not either."""
    if examined.adapter:
        below = changes_below_adapter(examined)
        if all_hold(below, 0.0) or all_hold(below, typical_times(below)):
            return []
        seen = f"its adapter stands on other weights than those of {examined.before.title}"
        return examined.fact("points_elsewhere", seen)
    before, after = (
        StoredTensors.of_folder(side.came) for side in (examined.before, examined.after)
    )
    cosines = list[float]()
    for name in matrices_of_both(before, after):
        old, new = before.matrix(name).flatten(), after.matrix(name).flatten()
        if old.any() and new.any():  # zeros, and values that are not finite, point nowhere
            cosines.append(float(torch.cosine_similarity(old, new, 0)))
    if not cosines:
        raise NotEnough("no matrix with values has the same name and shape in both models")
    typical = median(cosines)
    if typical >= ALIKE:
        return []
    seen = f"its matrices point elsewhere than those of {examined.before.title}: a cosine of {typical:.2f}"
    return examined.fact("points_elsewhere", seen)


def update_figures(examined: Examined) -> dict[str, list[str]]:
    """Return size and rank of the change of some matrices, as a figure of both models: an adapter's rank is low."""
    changes = matrix_changes(examined.before.came, examined.after.came)
    if not changes:
        return {}
    sizes = [change.size for change in changes]
    ranks = [change.rank for change in changes]
    more = " or more" if max(ranks) == MOST_RANK else ""
    change_in_words = f"{min(sizes):.1e} to {max(sizes):.1e} of their length, of rank {min(ranks)} to {max(ranks)}{more}"
    return {f"change of {len(sizes)} matrices": ["", change_in_words]}


def merged_rank(examined: Examined) -> int:
    """Return the rank of the change of weights that an adapter was merged into, where no adapter is there to compare it
    with: it is low, and one and the same in all matrices that changed. 0 if there is an adapter, or no such rank."""
    if examined.adapter or examined.merged_adapter:
        return 0
    changes = matrix_changes(examined.before.came, examined.after.came)
    changed = [change for change in changes if change.rank]
    ranks = {change.rank for change in changed}
    if len(ranks) != 1 or not all(2 * change.rank < change.full_rank for change in changed):
        return 0
    return ranks.pop()


@dataclass(frozen=True)
class MatrixChange:
    """The change of a matrix: its length by the matrix's, its rank, at most MOST_RANK, and the rank that any change of so
    many rows and columns may have, at most MOST_RANK."""

    size: float
    rank: int
    full_rank: int


@cache
def matrix_changes(before_folder: Path, after_folder: Path) -> list[MatrixChange]:
    """Return the changes of some matrices of both models."""
    before, after = map(StoredTensors.of_folder, (before_folder, after_folder))
    changes = list[MatrixChange]()
    for name in matrices_of_both(before, after):
        old = before.matrix(name)
        change = after.matrix(name) - old
        size = float(change.norm() / old.norm().clamp(min=1e-30))
        full_rank = min(*change.shape, MOST_RANK)
        changes.append(MatrixChange(size, rank_of(change), full_rank))
    return changes


def rank_of(matrix: torch.Tensor) -> int:
    """Return the rank of a matrix, at most MOST_RANK: that of its product with random columns."""
    columns = torch.randn(matrix.shape[1], MOST_RANK, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix @ columns)
    return int((values > NEGLIGIBLE * values.max()).sum()) if values.max() > 0 else 0


def matrices_of_both(before: StoredTensors, after: StoredTensors) -> list[str]:
    """Return the names of some matrices of both models, of equal shape. Embeddings are left to other checks."""
    names = list[str]()
    for name, shape in sorted(before.shapes.items()):
        is_in_layer = LAYER.search(name) is not None
        if is_in_layer and len(shape) == 2 and after.shapes.get(name) == shape:
            names.append(name)
    return spread(names, COMPARED)


def merged_twice(examined: Examined) -> list[Finding]:
    """Find an adapter that is in the weights under it already, once or by another factor."""
    if not examined.adapter:
        return []
    below = changes_below_adapter(examined)
    times = typical_times(below)
    if all_hold(below, 0.0) or not all_hold(below, times):
        return []
    seen = (
        f"the weights under its adapter are those of {examined.before.title} with {times:.3g} times "
        f"the adapter's change, so that it counts {times + 1:.3g} times"
    )
    return examined.fact("merged_twice", seen)


def merged_at_another_scale(examined: Examined) -> list[Finding]:
    """Find merged weights that hold the adapter beside them by another factor than alpha / r, or in some layers alone."""
    if not examined.merged_adapter:
        return []
    weights = examined.merged_weights or examined.after.came
    changes = compared_changes(examined.merged_adapter, examined.before.came, weights)
    if all_hold(changes, 1.0):
        return []
    merged = [change for change in changes if change.holds(1.0)]
    absent = [change for change in changes if change.holds(0.0)]
    if merged and absent and len(merged) + len(absent) == len(changes):
        seen = f"{len(absent)} of {len(changes)} layers are without the change of the adapter beside them"
        return examined.fact("merged_at_another_scale", seen)
    times = typical_times(changes)
    if not all_hold(changes, times):
        seen = f"its weights are not those of {examined.before.title} with the adapter beside them"
        return [examined.finding("merged_at_another_scale", seen, OF_FILES, is_fault=False)]
    seen = (
        f"its weights hold {times:.3g} times the change of the adapter beside them, alpha / r · BA"
    )
    return examined.fact("merged_at_another_scale", seen)


def changes_below_adapter(examined: Examined) -> list[LayerChange]:
    """Return by layer the adapter's change, and the change from `before` to the weights that the adapter stands on."""
    assert examined.adapter
    merged = compared_changes(examined.adapter, examined.before.came, examined.after.came)
    return [change.below_adapter() for change in merged]


def compared_changes(adapter: Path, before: Path, after: Path) -> list[LayerChange]:
    """Return the changes of some layers. Raise NotEnough if no layer can be compared."""
    changes = read_changes(adapter, before, after)
    if not changes:
        raise NotEnough("no layer of its adapter is a matrix in both models")
    return changes


@cache
def read_changes(adapter: Path, before: Path, after: Path) -> list[LayerChange]:
    weights = (StoredTensors.of_folder(folder) for folder in (before, after))
    return [*layer_changes(adapter, *weights)]


def all_hold(changes: list[LayerChange], times: float) -> bool:
    """Return whether all layers hold their adapter's change so many times."""
    return all(change.holds(times) for change in changes)


def typical_times(changes: list[LayerChange]) -> float:
    return median(change.times for change in changes)


def rows_untrained(examined: Examined) -> list[Finding]:
    """Find new tokens of the template or the end of turn whose rows are still the mean of all rows."""
    contract = examined.after.contract
    ids = {i for turns in examined.conversations[:3] for i in contract.prompt(turns[:-1])}
    used = {*ids, contract.stop_ids[0]} & contract.added
    if not used:
        return []
    place = locate_output_embedding(examined.after.came)
    if place is None:
        raise NotEnough("its files hold no output embedding under the name that its class gives it")
    file, name = place
    rows = StoredTensors([file]).matrix(name)
    mean = rows.mean(0)
    usual = float((rows[:SAMPLED] - mean).norm(dim=1).median())
    untrained = list[int]()
    for i in sorted(used):
        if i < len(rows) and float((rows[i] - mean).norm()) < NEAR_MEAN * usual:
            untrained.append(i)
    if not untrained:
        return []
    tokens = ", ".join(map(str, contract.tokenizer.convert_ids_to_tokens(untrained)))
    seen = f"the rows of {tokens} in its embedding are the mean of all rows, as rows are when they are added"
    return examined.fact("rows_untrained", seen)
