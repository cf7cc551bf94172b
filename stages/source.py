"""Stage `source`: one file, folder, pattern or hub dataset as examples, each in the split of its prompt. Other sources
do not matter here: `data` selects the rows, and how often they are used."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.config.blocks.data import OneSource
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.curation.audit.auditor import RowFilter
from stages.curation.user_code import load_user_code
from stages.formats.column_mapping import source_purpose
from stages.formats.format import ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.source_reading import (
    ReadReport,
    convert,
    quarantine,
    warn_unused_columns,
    write_quarantine,
)
from stages.store import plugins
from stages.store.numbers import count_clauses
from stages.store.records import Check, SourceRow, save
from stages.store.splits import NEED_AN_ANSWER, conversation_of, draw_split, prompt_of
from stages.store.workspace import StageDir
from stages.tasks.checks import incomparable

MOST_OF_ONE = 0.02  # share of a source's rows that one conversation may have before a warning


@dataclass
class Counts:
    """Counts of a source: its examples by split, the rows that continue a conversation by how it begins, and the
    references by whether the source's check can compare answers with them."""

    splits: Counter[str] = field(default_factory=Counter)
    continued: Counter[str] = field(default_factory=Counter)
    references: Counter[bool] = field(default_factory=Counter)


def run(cfg: OneSource, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `examples.parquet`, and `quarantine.jsonl` if rows cannot be used.
    Raise UserError for a source without a usable row, or with more unusable rows than `max_bad` allows."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    report = ReadReport()
    counts = Counts()
    row_filter = RowFilter(cfg.audit, cfg.form)
    _, own = load_user_code(cfg.own, out)

    with plugins.explain_errors(cfg.own, "data.own", out.path):
        rows = examples(cfg, own, row_filter, report, counts)
        save(out / "examples.parquet", rows, SourceRow)
    if cfg.source.check:
        report.notes.append(comparable_share(cfg.source.check, counts.references))
    for line in report.notes:
        out.inform(f"{cfg.of}: {line}")
    quarantine(report.bad_rows, report.rows, cfg.max_bad, out)
    write_quarantine(report.flagged_rows, out)
    if not report.usable:
        reason = "no row can be used, or the source's splits exclude every row"
        raise UserError(f"{cfg.key}={cfg.source.path}: {reason}. Check its columns and splits.")
    warn_large_conversation(counts, str(cfg.of), out)
    warn_unused_columns(cfg.source.path, [*report.unused_columns], out)
    if report.unwanted:
        removed = ", ".join(count_clauses(dict(report.unwanted.most_common())))
        out.inform(f"{cfg.of}: rows removed by data.audit: {removed}")
    quarantined = len(report.bad_rows)
    unwanted = report.unwanted.total()
    unused = {
        "rows in quarantine.jsonl": quarantined,
        "rows left out by splits, labels or weights": report.left_out,
        "rows removed by data.audit": unwanted,
    }
    clauses = [", ".join(count_clauses(counts.splits)), *count_clauses(unused)]
    shaped = row_filter.harmonizer.describe()
    if shaped:
        clauses.append(shaped)
    return {
        "rows": report.rows,
        "examples": dict(counts.splits),
        "quarantined": quarantined,
        "left_out": report.left_out,
        "unwanted": unwanted,
        **row_filter.harmonizer.metrics(),
        "read": report.notes,
        "summary": "; ".join(clauses),
    }


def require_reference(check: str, reference: str | None, references: Counter[bool]) -> None:
    """Count a row's reference. Raise BadRow if there is none, or if the check cannot compare answers with it."""
    if reference is None:
        raise BadRow("", f"no answer for check={check} to compare with")
    problem = incomparable(check, reference)
    references[not problem] += 1
    if problem:
        raise BadRow("", problem)


def comparable_share(check: str, references: Counter[bool]) -> str:
    """Return the note on how many references a check can compare answers with."""
    note = f"check {check}: {references[True]} of {references.total()} references can be compared"
    if references[False]:
        note += "; the others are in quarantine.jsonl"
    return note


def warn_large_conversation(counts: Counts, source: str, out: StageDir) -> None:
    """Warn if many rows continue one conversation: they are all in one split."""
    most = max(counts.continued.values(), default=0)
    rows = counts.splits.total()
    if most > max(1, MOST_OF_ONE * rows):
        out.warn(
            f"{source}: {most} of {rows} rows are of one group, or begin with the same system and user turn. They are in "
            "one split, so that splits may have other shares than asked for."
        )


def examples(
    cfg: OneSource,
    own: Callable[[Any], ParsedRow] | None,
    audit: RowFilter,
    report: ReadReport,
    counts: Counts,
) -> Iterator[SourceRow]:
    """Return the examples of a source that pass the audit. Fill `report` and `counts`."""
    source = cfg.source
    name = Path(source.path).name
    shares = source.shares
    unchecked = list[Check]()  # one list for all rows saves the garbage collector many objects

    def example(row: ParsedRow) -> SourceRow | None:
        row = audit.harmonizer(row)
        messages = row.messages
        answer = row.answers[0] if len(row.answers) == 1 else None
        prompt = prompt_of(messages, answer)
        conversation = conversation_of(prompt, messages, row.group)
        split = draw_split(conversation, shares)
        answered_later = bool(source.answered_later and messages) and split == Split.sft
        needs_answer = split in NEED_AN_ANSWER and not answered_later
        if needs_answer and answer is None:
            raise BadRow(
                "",
                "no answer to learn from: type data.form.turns=cut to leave out a last request",
            )
        if split not in (None, *NEED_AN_ANSWER) and not messages:
            raise BadRow("text", f"plain text has no prompt for the {split} split")
        if row.scores and not row.scores[0]:  # a bad answer: only its prompt is used
            if needs_answer or source.check:
                return None
            answer = None
        if source.check:
            require_reference(source.check, answer, counts.references)
        if split is None or (needs_answer and row.trained and not any(row.trained)):
            return None
        file, line = report.position
        audit(row, split, file, line)
        checks = unchecked
        if source.check and answer is not None:
            checks = [Check(source.check, {"text": answer})]
        counts.splits[split] += 1
        if conversation != prompt:
            counts.continued[conversation] += 1
        # an answer to compare with is no demonstration, where stage=select finds one
        reference = None if answered_later and source.check else answer
        written = SourceRow(
            prompt,
            messages,
            reference,
            name,
            name,
            split,
            kind=name,
            checks=checks,
            trained=row.trained,
        )
        written.licence = row.licence
        written.origin = row.origin or (row.models or [None])[0]
        written.together = row.group
        written.file = file
        written.line = line
        return written

    return convert(source, cfg.key, example, source_purpose(source), report, own)
