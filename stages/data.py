"""Stage `data`: examples in four splits (sft, preference, validation, test) that share no prompt. A prompt belongs to
the first split that claims it: generated tests claim first, then other generated splits, then the sources in their
order. Each source is read by a `source` node; this stage selects the rows, and how often they are used."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.config.blocks.data import Data, Form, plan_amounts
from stages.config.errors import UserError, suggest
from stages.curation.audit.auditor import RowFilter
from stages.curation.joining import SourceRows, SplitLedger, gather_rows
from stages.curation.user_code import KEY, load_user_code
from stages.formats.readers.row import Unwanted
from stages.formats.source_reading import write_quarantine
from stages.store import plugins
from stages.store.licences import provenance_of
from stages.store.numbers import count_clauses
from stages.store.records import Example, save_tables, to_tables
from stages.store.workspace import Progress, StageDir
from stages.tasks import open_requests
from stages.tasks.checks import known_checks, share_passed
from stages.tasks.generator import Family, generate


def run(cfg: Data, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `examples.parquet` and any quarantine. Raise UserError if a source with a weight has no sft rows."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    families, _ = load_user_code(cfg.own, out)
    with plugins.explain_errors(cfg.own, KEY, out.path):
        examples = generate_examples(cfg, families)
        validate_user_tasks(examples, families)
    ledger, claimed = claim_new_rows(
        cfg, examples, [folder / "examples.parquet" for folder in inputs.values()], out
    )
    set_sft_amounts(cfg, claimed, ledger)

    def tables() -> Iterator[pa.Table]:
        yield from to_tables(examples, Example)
        rows = sum(sum(part.counts(ledger).values()) for part in claimed)
        with Progress(rows, "data", "row") as progress:
            for part in claimed:
                for table in part.tables(ledger, cfg.seed):
                    yield table
                    progress.update(len(table))

    file = out / "examples.parquet"
    save_tables(file, tables(), Example)
    return compile_metrics(examples, claimed, ledger) | provenance_of(file)


def generate_examples(cfg: Data, families: dict[str, Family]) -> list[Example]:
    """Return the examples of generated tasks and of open requests, or those that an extra writes for the evaluation."""
    if cfg.extra:
        prompts = import_module(f"stages.extras.{cfg.extra}.prompts")
        written: list[Example] = prompts.generate(cfg)
        return written
    if not cfg.tasks:
        return []
    counts = asdict(cfg.tasks)
    of_tasks = generate(cfg.seed, counts, counts.pop("families"), families)
    return of_tasks + open_requests.generate(cfg.seed, counts)


def validate_user_tasks(examples: list[Example], families: dict[str, Family]) -> None:
    """Raise UserError for a user-defined task with an unknown check or without checks, or whose reference fails them."""
    for example in examples:
        if example.task not in families:
            continue
        for check in example.checks:
            if check.kind not in known_checks():
                raise UserError(
                    f"data.own: {example.task}: {check.kind!r} is not a check.{suggest(check.kind, known_checks())}"
                )
        if (
            not example.checks
            or not example.reference
            or share_passed(example.checks, example.reference) < 1
        ):
            raise UserError(
                f"data.own: {example.task}: the reference {example.reference!r:.80} has no checks, or fails one."
            )


def claim_new_rows(
    cfg: Data, examples: list[Example], files: list[Path], out: StageDir
) -> tuple[SplitLedger, list[SourceRows]]:
    """Return the ledger of prompts, and of each source the rows whose prompts no earlier row has claimed."""
    all_rows = gather_rows(examples, files)
    ledger = SplitLedger(all_rows)
    ledger.claim(np.arange(len(examples)))  # sources yield to generated examples
    claimed = list[SourceRows]()
    audit = cfg.audit.for_codes(from_comparing_rows=True)
    row_filter = RowFilter(audit, Form()) if audit.actions else None
    for i, (source, file) in enumerate(zip(cfg.sources, files, strict=True)):
        row_indexes = np.arange(len(all_rows.ids))[all_rows.slices[i]]
        source_rows = SourceRows.select(source, file, row_indexes, ledger, row_filter)
        quarantined = [
            row
            for row in source_rows.unwanted
            if isinstance(row.error, Unwanted) and row.error.quarantined
        ]
        write_quarantine(quarantined, out)
        if source_rows.copies:
            out.warn(
                f"{cfg.path_setting(i)}={source.path}: {source_rows.copies} of {len(source_rows.rows)} rows were skipped, because earlier rows "
                "have their prompts"
            )
        claimed.append(source_rows)
    return ledger, claimed


def set_sft_amounts(cfg: Data, claimed: list[SourceRows], ledger: SplitLedger) -> None:
    """Set how many sft rows each source contributes. Raise UserError if a source has a weight but no rows for sft."""
    sft_row_counts = [len(part.sft_rows(ledger)) for part in claimed]
    for i, part in enumerate(claimed):
        if part.source.weight and not sft_row_counts[i]:
            key = cfg.source_setting(i)
            raise UserError(
                f"{key}.weight={part.source.weight:g}: the source has no sft rows. Remove the weight."
            )
    for part, amount in zip(
        claimed, plan_amounts(cfg.sources, cfg.mixture, sft_row_counts), strict=True
    ):
        part.amount = amount


def compile_metrics(
    examples: list[Example], claimed: list[SourceRows], ledger: SplitLedger
) -> dict[str, Any]:
    """Return the numbers of examples by split and of rows by source, with the summary."""
    counts = Counter(example.split for example in examples)
    sources = list[dict[str, Any]]()
    for part in claimed:
        counts.update(part.counts(ledger))
        sources.append(
            {
                "source": Path(part.source.path).name,
                "rows": len(part.rows),
                "unwanted": len(part.unwanted),
                "duplicates": part.copies,
                "left_over": part.left_over,
                "for_sft": len(part.sft_rows(ledger)),
                "examples": part.counts(ledger),
            }
        )
    copies = sum(part.copies for part in claimed)
    unwanted = sum(len(part.unwanted) for part in claimed)
    left_out = {"copies skipped": copies, "rows removed by data.audit": unwanted}
    clauses = [*count_clauses(counts), *count_clauses(left_out)]
    return {
        "examples": dict(counts),
        "duplicates_dropped": copies,
        "unwanted": unwanted,
        "sources": sources,
        "summary": ", ".join(clauses),
    }
