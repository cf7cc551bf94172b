"""Stage `data`: examples in four splits (sft, preference, validation, test) that share no prompt.

Knows no model. A prompt belongs to the split that took it first, and they take in this order: generated tests, the
other generated splits, then the sources as they are listed. Each source is a node of its own (`source`), where its
rows were read; here is decided which of them stay, and how often they come.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.config.blocks.data import Data, Form
from stages.config.choices import Split
from stages.config.errors import UserError, nearest
from stages.curation.audit.gate import RowFilter
from stages.curation.joining import SourceRows, SplitLedger, gathered
from stages.curation.mixing import amounts
from stages.curation.user_code import KEY, own_part
from stages.formats.readers.row import Unwanted
from stages.formats.source_reading import keep_apart
from stages.store import plugins
from stages.store.licences import UNKNOWN, Licences
from stages.store.records import Example, in_tables, save_tables
from stages.store.workspace import Progress, StageDir
from stages.tasks import open_requests
from stages.tasks.checks import known_checks, share_passed
from stages.tasks.generator import Family, generate


def run(cfg: Data, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `examples.parquet`, and `quarantine.jsonl` where `data.audit` puts rows there.

    Raises:
        UserError: where a source has a weight, and no rows for sft that it could bring.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    families, _ = own_part(cfg.own, out)
    with plugins.told(cfg.own, KEY, out.path):
        examples = generated(cfg, families)
        sound([e for e in examples if e.task in families])
    taken, joined = join(cfg, examples, [folder / "examples.parquet" for folder in inputs.values()], out)
    mix(cfg, joined, taken)
    seed, licences = cfg.tasks.seed if cfg.tasks else 0, Licences()

    def tables() -> Iterator[pa.Table]:
        for example in examples:
            licences.count(example)
        yield from in_tables(examples, Example)
        with Progress(sum(sum(part.counts(taken).values()) for part in joined), "data", "row") as progress:
            for part in joined:
                for table in part.tables(taken, seed):
                    licences.rows.update(licence or UNKNOWN for licence in table["licence"].to_pylist())
                    yield table
                    progress.update(len(table))

    save_tables(out / "examples.parquet", tables(), Example)
    return {**told(examples, joined, taken), **licences.metrics()}


def generated(cfg: Data, families: dict[str, Family]) -> list[Example]:
    """The examples of generated tasks, and of open requests."""
    if not cfg.tasks:
        return []
    settings = asdict(cfg.tasks)
    seed = settings.pop("seed")
    return generate(seed, settings, settings.pop("families"), families) + open_requests.generate(seed, settings)


def sound(examples: list[Example]) -> None:
    """Raise UserError for a task of the user's whose reference answer does not pass its own checks."""
    for e in examples:
        if unknown := [check.kind for check in e.checks if check.kind not in known_checks()]:
            raise UserError(f"{e.task}: {unknown[0]!r} is no kind of check.{nearest(unknown[0], known_checks())}")
        if not e.checks or not e.reference or share_passed(e.checks, e.reference) < 1:
            raise UserError(f"{e.task}: the reference {e.reference!r:.80} has no checks, or does not pass them all.")


def join(cfg: Data, examples: list[Example], files: list[Path], out: StageDir) -> tuple[SplitLedger, list[SourceRows]]:
    """The rows of every source that are in none before it, nor among the generated ones."""
    rows = gathered(examples, files)
    taken, joined = SplitLedger(rows), list[SourceRows]()
    taken.hold(np.arange(len(examples)))
    passes = RowFilter(cfg.audit.among_rows, Form()) if cfg.audit.among_rows.actions else None
    for i, (source, file) in enumerate(zip(cfg.sources, files, strict=True)):
        part = SourceRows.of(source, file, np.arange(len(rows.ids))[rows.parts[i]], taken, passes)
        keep_apart([row for row in part.unwanted if isinstance(row.error, Unwanted) and row.error.kept], out)
        if part.copies:
            again = " (it is listed before)" if file in files[:i] else ""
            told = f"{part.copies} of {len(part.rows)} rows are left out, because their prompt came before"
            out.warn(f"{cfg.key(i)}={source.path}{again}: {told}")
        joined.append(part)
    return taken, joined


def mix(cfg: Data, joined: list[SourceRows], taken: SplitLedger) -> None:
    """Say of every source how often its rows for sft come.

    Raises:
        UserError: where one has a weight and none of these.
    """
    rows = [len(part.to_learn(taken)) for part in joined]
    for i, part in enumerate(joined):
        if part.source.weight and not rows[i]:
            key = cfg.key(i).removesuffix(".path")
            raise UserError(f"{key}.weight={part.source.weight:g}: {part.source.path} has no rows for sft to bring.")
    for part, amount in zip(joined, amounts(cfg.sources, cfg.mixture, rows), strict=True):
        part.amount = amount


def told(examples: list[Example], joined: list[SourceRows], taken: SplitLedger) -> dict[str, Any]:
    """The metrics."""
    counts = Counter(e.split for e in examples)
    tasks = {e.task for e in examples if e.checks}
    sources, mixed = list[dict[str, Any]](), list[str]()
    for part in joined:
        name, to_learn = Path(part.source.path).name, len(part.to_learn(taken))
        counts.update(part.counts(taken))
        tasks.update([name] if part.source.check and len(part.drawn) else [])
        sources.append(
            {
                "source": name,
                "rows": len(part.rows),
                "unwanted": len(part.unwanted),
                "duplicates": part.copies,
                "left_over": part.left_over,
                "for_sft": to_learn,
                "examples": part.counts(taken),
            }
        )
        if part.amount.total != to_learn:
            mixed.append(f"{part.amount.total:,} of {name}'s {to_learn:,}")
    sums = {name: sum(each[name] for each in sources) for name in ("duplicates", "unwanted")}
    said = {"duplicates": "copies left out", "unwanted": "rows taken out by data.audit"}
    return {
        "examples": dict(counts),
        "tasks": len(tasks),
        "duplicates_dropped": sums["duplicates"],
        "unwanted": sums["unwanted"],
        "sources": sources,
        "summary": ", ".join(f"{counts[split]} {split}" for split in Split)
        + "".join(f"; {sums[name]} {what}" for name, what in said.items() if sums[name])
        + (f"; mixed for sft: {', '.join(mixed)}" if mixed else ""),
    }
