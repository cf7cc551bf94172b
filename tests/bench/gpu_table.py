"""The record of `gpu_chain` as Markdown, and the goals that it is held against."""

from collections.abc import Iterator

from tests.bench.gpu_cells import NODE
from tests.bench.gpu_record import Cell, Record

COLUMNS = (
    "stage",
    "variant",
    "seconds",
    "spread",
    "tokens/s",
    "MFU",
    "attention",
    "GiB",
    "planned",
)
GOAL_OVER_PADDED = 1.75  # of DPO's tokens per second, over our own padded run's
GOALS_MFU = {"dpo/ours": 0.40, "sft/ours": 0.45}


def markdown(record: Record) -> str:
    """Return machine, a table per shape with the reason of every empty cell, and the goals."""
    machine = ", ".join(f"{name} {value}" for name, value in record.machine.items() if value)
    rate = (
        f"{record.peak['rate'] / 1e12:.1f} TFLOP/s, {record.peak['source']}"
        if record.peak["rate"]
        else "not known"
    )
    lines = [f"{machine}; {record.precision}; commit {record.commit}. Peak rate: {rate}."]
    for shape, about in record.shapes.items():
        adapter = "" if about["adapter"] == "none" else f", {about['adapter']}"
        lines += ["", f"**{shape}**: {about['weights'] / 1e6:,.1f} M weights{adapter}", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
        lines += [row(cell) for cell in record.cells if cell.shape == shape]
        lines += ["", *whole_chain(shape, record)]
        lines += [] if shape == "tiny" else goals(shape, record)
    return "\n".join(lines)


def row(cell: Cell) -> str:
    if cell.empty:
        return f"| {cell.stage} | {cell.variant} | empty: {cell.empty} |{' |' * (len(COLUMNS) - 3)}"

    def share(value):
        return "" if value is None else f"{100 * value:.1f}%"

    rate = "" if cell.tokens_per_second is None else f"{cell.tokens_per_second:,.0f}"
    memory, planned = (
        "" if each is None else f"{each:.1f}" for each in (cell.gib, cell.planned_gib)
    )
    figures = [
        f"{cell.seconds:.2f}",
        share(cell.spread),
        rate,
        share(cell.mfu),
        share(cell.attention),
        memory,
        planned,
    ]
    return f"| {' | '.join([cell.stage, cell.variant, *figures])} |"


def whole_chain(shape: str, record: Record) -> Iterator[str]:
    """Yield a line with the time from the data to the verdict, and what it costs, if every stage was built."""
    stages = [cell for cell in record.cells if cell.shape == shape and cell.variant == NODE]
    seconds = [cell.seconds for cell in stages if cell.seconds is not None]
    if stages and len(seconds) == len(stages):
        hours = sum(seconds) / 3600
        dollars = f"${record.price * hours:.2f} at ${record.price:.2f} an hour"
        yield f"- the whole chain: {60 * hours:.1f} min, {dollars}"


def goals(shape: str, record: Record) -> Iterator[str]:
    """Yield a line for each goal of a shape: the figure, or that its cell is empty."""
    cells = {f"{cell.stage}/{cell.variant}": cell for cell in record.cells if cell.shape == shape}
    for name, goal in GOALS_MFU.items():
        reached = cells[name].mfu
        yield f"- MFU of {name}: {tell(reached, goal, '{:.1%}')}"
    packed, padded = (cells[name].tokens_per_second for name in ("dpo/ours", "dpo/ours_padded"))
    ratio = packed / padded if packed and padded else None
    yield f"- tokens/s of dpo/ours over dpo/ours_padded: {tell(ratio, GOAL_OVER_PADDED, '{:.2f}')}"


def tell(reached: float | None, goal: float, form: str) -> str:
    if reached is None:
        return f"empty (goal {form.format(goal)})"
    return f"{form.format(reached)}, {'reaches' if reached >= goal else 'misses'} the goal of {form.format(goal)}"
