"""Stage `source`: one file, folder, pattern or hub dataset as examples, each in the split of its prompt. Other sources
do not matter here: `data` selects the rows, and how often they are used."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stages.config.blocks.data import OneSource, Source
from stages.config.choices import SOURCE_CHECKS, Split
from stages.config.errors import UserError
from stages.curation.audit.auditor import RowFilter
from stages.curation.user_code import load_user_code
from stages.formats.column_mapping import source_purpose
from stages.formats.format import CUT, ParsedRow
from stages.formats.readers.row import BadRow, Way
from stages.formats.source_reading import (
    ReadReport,
    convert,
    quarantine,
    warn_unused_columns,
    write_quarantine,
)
from stages.store import plugins
from stages.store.numbers import count_clauses
from stages.store.records import Check, Records, SourceRow, save
from stages.store.splits import NEED_AN_ANSWER, conversation_of, draw_split, prompt_of
from stages.store.workspace import COLUMNS, StageDir
from stages.tasks.checks import incomparable

NO_ANSWER = "no answer to learn from"
UNCHECKED = Way({"check": None}, "to use rows without a check")


def run(cfg: OneSource, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Write `examples.parquet`, and `quarantine.jsonl` if rows cannot be used.
    Raise UserError for a source without a usable row, or with more unusable rows than `max_bad` allows."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    report = ReadReport()
    count_by_split = Counter[str]()
    count_by_comparable = Counter[bool]()
    row_filter = RowFilter(cfg.audit, cfg.form)
    _, user_reader = load_user_code(cfg.own, out)

    with plugins.explain_errors(cfg.own, "data.own", out.path):
        rows = read_examples(
            cfg, user_reader, row_filter, report, count_by_split, count_by_comparable
        )
        save(out / "examples.parquet", rows, SourceRow)
    if cfg.source.check:
        report.notes.append(
            f"check {cfg.source.check}: {count_by_comparable[True]} of {count_by_comparable.total()} references "
            "can be compared"
        )
    for line in report.notes:
        out.inform(f"{cfg.of}: {line}")
    quarantine(report.bad_rows, report.rows, cfg.max_bad, out)
    write_quarantine(report.flagged_rows, out)
    if not report.usable:
        raise UserError(
            f"{cfg.key}={cfg.source.path}: no row is left for the splits {', '.join(cfg.source.shares)}. Type "
            f"{all_for_sft(cfg.source).typed(str(cfg.of))}."
        )
    report.kept.save(out / COLUMNS, Records(out / "examples.parquet", SourceRow).column("id"))
    warn_unused_columns(cfg.source.path, [*report.unused_columns], out, report.kept.columns)
    unused = {
        "rows in quarantine.jsonl": len(report.bad_rows),
        "rows left out by splits, labels or weights": report.left_out,
        "rows removed by data.audit": report.unwanted.total(),
    }
    clauses = [*count_clauses(count_by_split), *count_clauses(unused)]
    return {
        "rows": report.rows,
        "examples": dict(count_by_split),
        "quarantined": len(report.bad_rows),
        "left_out": report.left_out,
        "unwanted": report.unwanted.total(),
        **row_filter.harmonizer.metrics(),
        "read": report.notes,
        "summary": ", ".join(filter(None, [*clauses, row_filter.harmonizer.describe()])),
    }


def all_for_sft(source: Source) -> Way:
    """Return the way to train on all rows of a source."""
    shares = {**dict.fromkeys(source.splits, 0.0), "sft": 1.0}
    return Way({"splits": shares}, "to train on all rows")


def checks_that_compare(reference: str) -> list[Way]:
    """Return the ways to compare answers with a reference by another check, or by none."""
    others = [check for check in SOURCE_CHECKS if not incomparable(check, reference)]
    return [*(Way({"check": check}) for check in others), UNCHECKED]


def read_examples(
    cfg: OneSource,
    user_reader: Callable[[Any], ParsedRow] | None,
    row_filter: RowFilter,
    report: ReadReport,
    count_by_split: Counter[str],
    count_by_comparable: Counter[bool],
) -> Iterator[SourceRow]:
    """Return the examples of a source that pass the audit. Fill `report`, and count them by split and
    their references by whether the source's check can compare answers with them."""
    source = cfg.source
    file_name = Path(source.path).name
    shares = source.shares  # sorted once
    unchecked = list[Check]()  # one list for all rows saves the garbage collector many objects

    def make_example(row: ParsedRow) -> SourceRow | None:
        row = row_filter.harmonizer(row)
        messages = row.messages
        answer = row.answers[0] if len(row.answers) == 1 else None
        prompt = prompt_of(messages, answer)
        split = draw_split(conversation_of(prompt, messages, row.group), shares)
        answered_later = bool(source.answered_later and messages) and split == Split.sft
        needs_answer = split in NEED_AN_ANSWER and not answered_later
        if needs_answer and answer is None:
            has_answer = any(turn["role"] == "assistant" for turn in messages)
            raise BadRow("", NO_ANSWER, *[CUT] * has_answer)
        if split not in (None, *NEED_AN_ANSWER) and not messages:
            raise BadRow(
                "text", f"plain text has no prompt for the {split} split", all_for_sft(source)
            )
        if row.scores and not row.scores[0]:  # a bad answer: only its prompt is used
            if needs_answer or source.check:
                return None
            answer = None
        if source.check:
            if answer is None:
                raise BadRow(
                    "", f"no answer that the check {source.check} could compare with", UNCHECKED
                )
            why_incomparable = incomparable(source.check, answer)
            count_by_comparable[not why_incomparable] += 1
            if why_incomparable:
                raise BadRow("", why_incomparable, *checks_that_compare(answer))
        if split is None or (needs_answer and row.trained and not any(row.trained)):
            return None
        file, line = report.position
        row_filter(row, split, file, line)
        checks = unchecked
        if source.check and answer is not None:
            checks = [Check(source.check, {"text": answer})]
        count_by_split[split] += 1
        # an answer to compare with is no demonstration, where stage=select finds one
        reference = None if answered_later and source.check else answer
        return SourceRow(
            prompt,
            messages,
            reference,
            file_name,
            file_name,
            split,
            kind=file_name,
            checks=checks,
            trained=row.trained,
            licence=row.licence,
            origin=row.origin or (row.models or [None])[0],
            together=row.group,
            file=file,
            line=line,
        )

    return convert(source, cfg.key, make_example, source_purpose(source), report, user_reader)
