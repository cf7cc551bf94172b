"""The record of `gpu_chain` as Markdown."""

from tests.bench.gpu_record import Cell, Record

FORMATS = {
    "seconds": "{:.2f}",
    "spread": "{:.1%}",
    "tokens/s": "{:,.0f}",
    "MFU": "{:.1%}",
    "attention": "{:.1%}",
    "GiB": "{:.1f}",
    "planned": "{:.1f}",
}
COLUMNS = ("stage", "variant", *FORMATS)


def markdown(record: Record) -> str:
    """Return machine, and a table per shape with the reason of every empty cell."""
    machine = ", ".join(f"{name} {value}" for name, value in record.machine.items() if value)
    rate = "not known"
    if record.peak["rate"]:
        rate = f"{record.peak['rate'] / 1e12:.1f} TFLOP/s, {record.peak['source']}"
    lines = [f"{machine}; {record.precision}; commit {record.commit}. Peak rate: {rate}."]
    for shape, about in record.shapes.items():
        weights = f"{about['weights'] / 1e6:,.1f} M weights"
        lines += ["", f"**{shape}**: {weights}, adapter {about['adapter']}", ""]
        lines += [table_row(*COLUMNS), table_row(*["---"] * len(COLUMNS))]
        lines += [row(cell) for cell in record.cells if cell.shape == shape]
    return "\n".join(lines)


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def row(cell: Cell) -> str:
    if cell.empty:
        return table_row(
            cell.stage, cell.variant, f"empty: {cell.empty}", *[""] * (len(FORMATS) - 1)
        )
    figures = (cell.seconds, cell.spread, cell.tokens_per_second, cell.mfu, cell.attention)
    texts = list[str]()
    for figure, form in zip((*figures, cell.gib, cell.planned_gib), FORMATS.values(), strict=True):
        texts.append("" if figure is None else form.format(figure))
    return table_row(cell.stage, cell.variant, *texts)
