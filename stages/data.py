"""Stage `data`: examples in four splits (sft, preference, validation, test) that share no prompt. A prompt belongs to
the first split that claims it: generated tests claim first, then other generated splits, then the sources in their
order. Each source is read by a `source` node; this stage selects the rows, and how often they are used."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
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
from stages.tasks import open_requests, suites
from stages.tasks.checks import known_checks, share_passed
from stages.tasks.generator import Family, generate


def run(cfg: Data, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `examples.parquet` and any quarantine. Raise UserError if a source with a weight has no sft rows."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    families, _ = load_user_code(cfg.own, out)
    with plugins.explain_errors(cfg.own, KEY, out.path):
        examples = generate_examples(cfg, families)
        validate_user_tasks(examples, families)
    ledger, joined = join(
        cfg, examples, [folder / "examples.parquet" for folder in inputs.values()], out
    )
    mix(cfg, joined, ledger)

    def tables() -> Iterator[pa.Table]:
        yield from to_tables(examples, Example)
        rows = sum(sum(part.counts(ledger).values()) for part in joined)
        with Progress(rows, "data", "row") as progress:
            for part in joined:
                for table in part.tables(ledger, cfg.seed):
                    yield table
                    progress.update(len(table))

    file = out / "examples.parquet"
    save_tables(file, tables(), Example)
    return compile_metrics(examples, joined, ledger) | provenance_of(file)


def generate_examples(cfg: Data, families: dict[str, Family]) -> list[Example]:
    """Return the examples of generated tasks and of open requests, or of an evaluation's suites."""
    if cfg.suites:
        return suites.generate(cfg.suites)
    if not cfg.tasks:
        return []
    counts = asdict(cfg.tasks)
    drawn = generate(cfg.seed, counts, counts.pop("families"), families)
    return drawn + open_requests.generate(cfg.seed, counts)


def validate_user_tasks(examples: list[Example], families: dict[str, Family]) -> None:
    """Raise UserError for a user-defined task with an unknown check, or whose reference fails its own checks."""
    for e in examples:
        if e.task not in families:
            continue
        for check in e.checks:
            if check.kind not in known_checks():
                raise UserError(
                    f"data.own: {e.task}: {check.kind!r} is not a check.{suggest(check.kind, known_checks())}"
                )
        if not e.checks or not e.reference or share_passed(e.checks, e.reference) < 1:
            raise UserError(
                f"data.own: {e.task}: the reference {e.reference!r:.80} has no checks, or fails one."
            )


def join(
    cfg: Data, examples: list[Example], files: list[Path], out: StageDir
) -> tuple[SplitLedger, list[SourceRows]]:
    """Return the ledger of prompts, and of each source the rows with prompts that nothing before them has."""
    rows = gather_rows(examples, files)
    ledger = SplitLedger(rows)
    ledger.claim(np.arange(len(examples)))  # sources yield to generated examples
    joined = list[SourceRows]()
    audit = cfg.audit.for_codes(from_comparing_rows=True)
    row_filter = RowFilter(audit, Form()) if audit.actions else None
    for i, (source, file) in enumerate(zip(cfg.sources, files, strict=True)):
        indices = np.arange(len(rows.ids))[rows.slices[i]]
        part = SourceRows.select(source, file, indices, ledger, row_filter)
        flagged = [
            row
            for row in part.unwanted
            if isinstance(row.error, Unwanted) and row.error.quarantined
        ]
        write_quarantine(flagged, out)
        if part.copies:
            out.warn(
                f"{cfg.path_setting(i)}={source.path}: {part.copies} of {len(part.rows)} rows were skipped, because "
                "earlier rows have their prompts"
            )
        joined.append(part)
    return ledger, joined


def mix(cfg: Data, joined: list[SourceRows], ledger: SplitLedger) -> None:
    """Set how many sft rows each source contributes. Raise UserError if a source has a weight but no rows for sft."""
    rows = [len(part.sft_rows(ledger)) for part in joined]
    for i, part in enumerate(joined):
        if part.source.weight and not rows[i]:
            key = cfg.source_setting(i)
            raise UserError(
                f"{key}.weight={part.source.weight:g}: the source has no sft rows. Remove the weight."
            )
    for part, amount in zip(joined, plan_amounts(cfg.sources, cfg.mixture, rows), strict=True):
        part.amount = amount


def compile_metrics(
    examples: list[Example], joined: list[SourceRows], ledger: SplitLedger
) -> dict[str, Any]:
    """Return the metrics, except licences and origins."""
    counts = Counter(e.split for e in examples)
    sources = list[dict[str, Any]]()
    for part in joined:
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
    copies = sum(part.copies for part in joined)
    unwanted = sum(len(part.unwanted) for part in joined)
    lost = {"copies skipped": copies, "rows removed by data.audit": unwanted}
    clauses = [*count_clauses(counts), *count_clauses(lost)]
    return {
        "examples": dict(counts),
        "duplicates_dropped": copies,
        "unwanted": unwanted,
        "sources": sources,
        "summary": ", ".join(clauses),
    }
