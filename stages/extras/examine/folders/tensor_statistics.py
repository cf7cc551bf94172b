"""Figures of one tensor beside the start's tensor of the same name, from one pass over both; and of a change's rank."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.evaluation.stored_tensors import StoredTensors, spread

GROUP = 32  # weights side by side whose different values are counted
GROUPED_ROWS = 64  # rows of a matrix in which they are counted
SHOWN_ROWS = 3
SKETCH = 192  # directions of a change that are looked for; a change in more is called full
LARGEST_RANKED = 1 << 26  # elements of the largest matrix whose change is taken apart
HELD = 0.99  # share of a change that its directions hold


@dataclass
class TensorFigures:
    """Figures of one tensor of a model. `before`: those of the start's tensor; None if it has none of this shape.
    `change`, `product`: the squared length of the difference of both, and their inner product."""

    name: str
    rows: int
    is_matrix: bool
    not_finite_rows: list[int] = field(default_factory=list)
    zero_rows: list[int] = field(default_factory=list)
    largest: float = 0.0
    square: float = 0.0
    zeros: int = 0
    elements: int = 0
    values_side_by_side: float = 0.0
    before: "TensorFigures | None" = None
    change: float = 0.0
    product: float = 0.0

    def add(self, block: Tensor) -> Tensor:
        """Add a block of rows in the file's type, and return it in fp32 without NaN and infinite values."""
        values = block.float()
        first_row = self.elements // max(1, values.shape[1])
        finite = values.isfinite()
        self.not_finite_rows += row_numbers(~finite.all(1), first_row)
        self.zero_rows += row_numbers((values == 0).all(1), first_row)
        if self.is_matrix and not self.elements:
            self.values_side_by_side = count_values_side_by_side(block)
        values = values.nan_to_num(0.0, 0.0, 0.0)
        self.largest = max(self.largest, float(values.abs().amax())) if values.numel() else 0.0
        self.square += float(values.double().square().sum())
        self.zeros += int((values == 0).sum())
        self.elements += values.numel()
        return values

    @property
    def cosine(self) -> float:
        """The cosine between the tensor and the start's."""
        assert self.before
        length = (self.square * self.before.square) ** 0.5
        return self.product / length if length else 1.0

    @property
    def new_zero_rows(self) -> list[int]:
        """The rows that are zero, and were not in the start."""
        earlier = {*self.before.zero_rows} if self.before else set()
        return [row for row in self.zero_rows if row not in earlier]


def row_numbers(flags: Tensor, first_row: int) -> list[int]:
    return [first_row + int(row) for row in flags.nonzero().flatten()]


def tensor_figures(start: StoredTensors, model: StoredTensors, name: str) -> TensorFigures:
    """Return the figures of a model's tensor, beside the start's if that has as many columns. Of two embeddings of
    different length the rows that both have are compared."""
    shape = model.shapes[name]
    is_matrix = len(shape) >= 2
    figures = TensorFigures(name, shape[0] if shape else 1, is_matrix)
    comparable = name in start and is_comparable(start.shapes[name], shape)
    earlier_blocks = start.blocks(name) if comparable else iter(())
    if comparable:
        figures.before = TensorFigures(name, start.shapes[name][0] if shape else 1, is_matrix)
    for block in model.blocks(name):
        values = figures.add(block)
        earlier = next(earlier_blocks, None)
        if earlier is None or figures.before is None:
            continue
        old = figures.before.add(earlier)
        shared = min(len(old), len(values))
        rounded = earlier[:shared].to(block.dtype).float().nan_to_num(0.0, 0.0, 0.0)
        # a weight that is not finite has no change of its own
        rounded = rounded.where(block[:shared].float().isfinite(), 0.0)
        figures.change += float((values[:shared] - rounded).double().square().sum())
        figures.product += float((values[:shared].double() * old[:shared].double()).sum())
    return figures


def is_comparable(start: list[int], model: list[int]) -> bool:
    """Return whether two shapes are the same, or those of matrices that differ by rows alone."""
    return start == model or (len(start) == len(model) == 2 and start[1] == model[1])


def count_values_side_by_side(block: Tensor) -> float:
    """Return the mean number of different values among 32 weights side by side in a row or a column, the smaller one."""
    step = max(1, len(block) // GROUPED_ROWS)
    rows = block[::step][:GROUPED_ROWS]
    columns = block[:, :: max(1, block.shape[1] // GROUPED_ROWS)][:, :GROUPED_ROWS].T
    counts = [count_in_groups(each.float()) for each in (rows, columns) if each.shape[1] >= GROUP]
    return min(counts, default=0.0)


def count_in_groups(matrix: Tensor) -> float:
    whole = matrix.shape[1] // GROUP * GROUP
    groups = matrix[:, :whole].reshape(-1, GROUP).sort(1).values
    return float((groups[:, 1:] != groups[:, :-1]).sum(1).float().mean()) + 1


def changed_matrix(start: StoredTensors, model: StoredTensors, name: str) -> Tensor:
    """Return the change of a matrix, beyond the rounding to the type of the model's file; zero where one of both is not
    finite."""
    pieces = list[Tensor]()
    for old, new in zip(start.blocks(name), model.blocks(name), strict=True):
        pieces.append(new.float() - old.to(new.dtype).float())
    change = torch.cat(pieces)
    return change.where(change.isfinite(), 0.0)


def count_directions(change: Tensor) -> int:
    """Return the fewest directions that hold 99% of the squared length of a change, by a random sketch of it. A change
    in more than the sketch has counts as full: its shorter side."""
    full = min(change.shape)
    total = float(change.double().square().sum())
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(change.shape[1], min(full, SKETCH), generator=generator)
    basis = torch.linalg.qr(change @ probes).Q
    lengths = torch.linalg.svdvals(basis.T @ change).double().square().cumsum(0)
    enough = (lengths >= HELD * total).nonzero()
    return int(enough[0]) + 1 if len(enough) else full


def rankable_names(figures: Sequence[TensorFigures], most: int) -> list[str]:
    """Return the names of some changed matrices of the same shape in both, spread over the model."""
    changed = list[str]()
    for each in figures:
        is_same_shape = each.before is not None and each.before.rows == each.rows
        if each.is_matrix and is_same_shape and each.change and each.elements <= LARGEST_RANKED:
            changed.append(each.name)
    return spread(changed, most)
