"""`stage=audit`: report problems in the rows of `data.sources` and of a preference set, by code and with examples.

It builds nothing; `data.audit.actions` makes stage=data remove such rows. `audit.jsonl` in the store's folder lists
every row with a code, and `audit.html` shows the counts and examples."""

import json
import logging
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.config.blocks.data import Data, Form, Source
from stages.config.blocks.training import SFT, Training
from stages.config.choices import AUDIT_CODES, Split
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.curation.audit.auditor import Auditor, best_and_worst, held_out, request_of
from stages.curation.audit.codes import DESCRIPTIONS
from stages.curation.audit.overlap import word_runs
from stages.curation.harmonize import Harmonizer
from stages.curation.languages import FUNCTION_WORDS
from stages.curation.user_code import KEY, load_user_code
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, as_json, convert
from stages.store import plugins, safe_files
from stages.store.node import Node
from stages.store.records import Message
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.splits import split_of
from stages.store.store import Store
from stages.store.text_units import count_words, lower_words
from stages.store.workspace import StageDir

if TYPE_CHECKING:
    from stages.models.token_rows import TokenRow

log = logging.getLogger(__name__)

UNUSABLE = "unusable"  # the code of a row that no stage can use
EXAMPLES = 3  # per code
FEWER = (5, 10, 20, 50, 100, 200, 500)  # bounds of the length distribution, in words
MOST_SHOWN = 12  # words or runs in each table
POLITE = re.compile(
    r"\A\W*((please|kindly|can you|could you|would you|i want you to|i would like you to)\W+)*",
    re.I,
)
FEWEST = 4  # letters; shorter words are not counted as topics
RUN = 4  # words in a counted run
DISTINCT = 3  # words in a run for distinct-3
MOST_ANSWERS = 2000  # whose runs are counted, so that memory is bounded
ROWS, PAGE = "audit.jsonl", "audit.html"  # in the store's root
COUNTS = "audit.json"  # counts of the last audit, in the store's cache
MEANINGS = {UNUSABLE: "no stage can use the row, for the reason in the report"} | DESCRIPTIONS


@dataclass
class Case:
    """A row with at least one code."""

    place: str
    codes: dict[str, str]
    request: str
    answer: str | None
    rejected: str | None


@dataclass
class AuditedSource:
    """The codes, examples and lengths of one source. `lengths`: words of each request and of each answer."""

    key: str
    source: Source
    purpose: Purpose
    harmonizer: Harmonizer = field(default_factory=lambda: Harmonizer(Form()))
    read_row: Callable[[Any], ParsedRow] | None = None  # the user's reader, in place of a format
    report: ReadReport = field(default_factory=ReadReport)
    first: list[list[Message]] = field(default_factory=list)  # conversations of the first rows
    codes: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    examples: dict[str, list[Case]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"requests": [], "answers": []})

    def note(self, case: Case) -> None:
        """Count a row's codes. For each code, the rows with the most codes become its examples."""
        self.flagged += 1
        for code in case.codes:
            self.codes[code] += 1
            cases = self.examples.setdefault(code, [])
            cases.append(case)
            # stable, so of equal rows the first stays
            cases.sort(key=lambda each: -len(each.codes))
            del cases[EXAMPLES:]


class Diversity:
    """Counts of words by rows: a word that occurs twice in one row counts once. Only the first answers are counted."""

    def __init__(self) -> None:
        self.requests = self.answers = self.seen = 0
        self.verbs = Counter[str]()
        self.topics = Counter[str]()
        self.runs = Counter[tuple[str, ...]]()
        self.distinct = set[tuple[str, ...]]()

    def note(self, request: str, answer: str | None) -> None:
        if request:
            self.requests += 1
            request_words = lower_words(POLITE.sub("", request))
            self.verbs.update(request_words[:1])
            topics = [
                w
                for w in request_words[1:]
                if len(w) >= FEWEST and w.isalpha() and w not in FUNCTION_WORDS
            ]
            self.topics.update(dict.fromkeys(topics, 1))
        if answer and self.answers < MOST_ANSWERS:
            self.answers += 1
            answer_words = lower_words(answer)
            # in order, which decides between ties
            self.runs.update(dict.fromkeys(word_runs(answer_words, RUN), 1))
            triples = list(word_runs(answer_words, DISTINCT))
            self.seen += len(triples)
            self.distinct.update(triples)

    def most_frequent(self) -> dict[str, tuple[list[tuple[str, int]], int]]:
        """Return the most frequent words and runs with their counts, and the number of rows, by heading."""
        counters = {"First word of requests": self.verbs, "Words of requests": self.topics}
        frequent = {
            name: (words.most_common(MOST_SHOWN), self.requests)
            for name, words in counters.items()
            if words
        }
        if self.runs:
            runs = [(" ".join(run), count) for run, count in self.runs.most_common(MOST_SHOWN)]
            frequent["Runs of four words in answers"] = runs, self.answers
        return frequent

    def distinct_sentence(self) -> str:
        """Return the sentence on the share of distinct three-word runs (distinct-3: arXiv:1510.03055)."""
        if not self.seen:
            return ""
        seen, share = self.seen, len(self.distinct) / self.seen
        return f"{share:.0%} of the first {seen:,} three-word runs in answers are distinct (distinct-3)."


def audited_sources(
    nodes: dict[str, Node], read_row: Callable[[Any], ParsedRow] | None
) -> list[AuditedSource]:
    """Return the sources of stage=data, and the preference set of `label=dataset`."""
    data: Data = nodes["data"].config
    harmonizer, sources = Harmonizer(data.form, data.audit), list[AuditedSource]()
    for block in (node.config for node in nodes["data"].inputs.values()):
        sources.append(
            AuditedSource(
                block.key, block.source, source_purpose(block.source), harmonizer, read_row
            )
        )
    if "label" in nodes and nodes["label"].config.brings_pool:
        sources.append(
            AuditedSource("label.path", nodes["label"].config.source, Purpose.preferences)
        )
    return sources


def audit_source(
    audited: AuditedSource, auditor: Auditor, diversity: Diversity, file: IO[str]
) -> None:
    """Audit a source, and write every row with a code to `file`. Raise UserError if it cannot be read at all."""
    for parsed, split in parsed_rows(audited):
        best, worst = best_and_worst(parsed)
        if best is not None and len(audited.first) < EXAMPLES:
            audited.first.append(conversation_with(parsed, best))
        request = request_of(parsed)
        audited.lengths["requests"] += [count_words(request)] if request else []
        audited.lengths["answers"] += [] if best is None else [count_words(best)]
        diversity.note(request, best)
        codes = auditor.findings(parsed, split)
        auditor.remember(parsed, split, audited.report.place)
        if codes:
            audited.note(Case(audited.report.place, codes, request, best, worst))
            content: dict[str, Any] = {"messages": parsed.messages, "answers": parsed.answers}
            content |= {"scores": parsed.scores} if parsed.scores else {}
            write_row(file, audited, audited.report.place, codes, content)
    for row in audited.report.bad_rows:
        assert row.error is not None
        place, codes = f"{row.file}:{row.line}", {UNUSABLE: str(row.error)}
        audited.note(
            Case(place, codes, json.dumps(as_json(row.value), ensure_ascii=False), None, None)
        )
        write_row(file, audited, place, codes, {"row": as_json(row.value)})


def conversation_with(parsed: ParsedRow, answer: str) -> list[Message]:
    """Return the conversation of a row up to one of its answers, which may be of several turns."""
    if parsed.continuations:
        return [*parsed.messages, *parsed.continuations[parsed.answers.index(answer)]]
    return [*parsed.messages, {"role": "assistant", "content": answer}]


def rows_as_trained(
    cfg: Config, store: Store, nodes: dict[str, Node], sources: list[AuditedSource]
) -> list["TokenRow"]:
    """Print and return the first rows of each source as a training reads them; none if the model is not here."""
    # imported here, as it loads torch
    from stages.models.token_rows import row_in_words, token_row
    from stages.preflight.row_lengths import planned_contract

    if (planned := planned_contract(nodes, store)) is None:
        log.info("Rows are not shown token by token: the model or its tokenizer is not here.")
        return []
    contract, context = planned
    rows = list["TokenRow"]()
    for source in sources:
        training: Training = cfg.dpo
        if source.purpose is not Purpose.preferences and isinstance(cfg.sft, SFT):
            training = cfg.sft
        limit, reason, _ = training.longest(context)
        for number, conversation in enumerate(source.first, 1):
            row = token_row(f"{source.key}, row {number}", contract, conversation)
            if len(row.tokens) > limit:
                row.note = f"left out: {reason}"
            rows.append(row)
            log.info("%s", visible(row_in_words(row), keep="\n"))
    return rows


def parsed_rows(audited: AuditedSource) -> Iterator[tuple[ParsedRow, str]]:
    """Yield the parsed rows of a source with their splits, without rows that belong to no split."""

    def with_split(parsed: ParsedRow) -> tuple[ParsedRow, str] | None:
        if audited.purpose is Purpose.preferences:
            return parsed, Split.preference
        parsed = audited.harmonizer(parsed)
        shares = audited.source.shares
        split = split_of(parsed.messages, parsed.answers, parsed.group, shares)
        return (parsed, split) if split else None

    return convert(
        audited.source, audited.key, with_split, audited.purpose, audited.report, audited.read_row
    )


def write_row(
    file: IO[str], audited: AuditedSource, place: str, codes: dict[str, str], row: dict[str, Any]
) -> None:
    file.write(
        json.dumps(
            {"source": audited.key, "place": place, "codes": codes, **row}, ensure_ascii=False
        )
        + "\n"
    )


def length_distribution(lengths: list[int]) -> list[tuple[str, int]]:
    """Return how many texts have 0–4 words, 5–9 words and so on."""
    counts = np.bincount(
        np.searchsorted(FEWER, lengths, side="right"), minlength=len(FEWER) + 1
    ).tolist()
    names = [f"{low}–{high - 1}" for low, high in zip((0, *FEWER), FEWER, strict=False)] + [
        f"{FEWER[-1]} or more"
    ]
    return list(zip(names, counts, strict=True))


def run(cfg: Config, store: Store, nodes: dict[str, Node], *rest: object) -> None:
    """Audit every source, print counts, write rows and page. Raise UserError without a source that can be read."""
    data: Data = nodes["data"].config
    with (
        tempfile.TemporaryDirectory() as folder,
        plugins.explain_errors(data.own, KEY, Path(folder)),
    ):
        _, own = load_user_code(data.own, StageDir(Path(folder), lambda metrics, step: None))
        sources = audited_sources(nodes, own)
        audit(data, sources, store, lambda: rows_as_trained(cfg, store, nodes, sources))


def audit(
    data: Data,
    sources: list[AuditedSource],
    store: Store,
    rows_as_trained: Callable[[], list["TokenRow"]],
) -> None:
    """Audit these sources, print the table and the first rows as trained, and write the rows and the page to the
    store."""
    if not sources:
        raise UserError(
            "stage=audit needs rows: 'data.sources=[{path: FILE}]', or label=dataset label.path=FILE."
        )
    auditor = Auditor(AUDIT_CODES, held_out(data.audit), data.audit.thresholds)
    diversity = Diversity()
    file, counts = store.root / ROWS, store.root / "cache" / COUNTS
    paths = [source.source.path for source in sources]
    last = read_note(counts, require_keys("sources", "codes"))
    previous = Counter[str](last["codes"]) if last and last["sources"] == paths else None
    counts.parent.mkdir(parents=True, exist_ok=True)
    with (
        safe_files.draft_of(file) as draft,
        open(draft, "w", encoding="utf-8", errors="backslashreplace") as rows,
    ):
        for source in sources:
            audit_source(source, auditor, diversity, rows)
    for source in sources:
        for line in source.report.notes:
            log.info("%s", visible(f"{source.key}: {line}"))
    if summary := sources[0].harmonizer.describe():
        log.info("data.form and data.audit: %s", summary)
    console = Console(width=None if os.isatty(1) else 120, markup=False)
    trained = rows_as_trained()
    console.print(summary_sentence(sources), codes_table(sources, previous))
    safe_files.write(store.root / PAGE, render_page(sources, previous, diversity, data, trained))
    write_note(counts, {"sources": paths, "codes": count_codes(sources)})
    log.info("Rows with codes: %s. Page: %s", file, store.root / PAGE)


def count_codes(sources: list[AuditedSource]) -> Counter[str]:
    return sum((source.codes for source in sources), Counter[str]())


def summary_sentence(sources: list[AuditedSource]) -> str:
    """Return the sentence that sums up the audit."""
    rows = sum(source.report.rows for source in sources)
    flagged = sum(source.flagged for source in sources)
    if not flagged:
        return f"None of {rows:,} rows has a code."
    most = ", ".join(f"{name} ({count:,})" for name, count in count_codes(sources).most_common(3))
    return f"{flagged:,} of {rows:,} rows have a code ({flagged / rows:.1%}). The most frequent: {most}."


def codes_table(sources: list[AuditedSource], previous: Counter[str] | None) -> Table:
    table = Table("code", "meaning", box=None, header_style="bold", pad_edge=False)
    for title in ("rows", *(["last time"] if previous is not None else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for code, count in count_codes(sources).most_common():
        table.add_row(
            code,
            MEANINGS[code],
            f"{count:,}",
            *([] if previous is None else [f"{previous[code]:,}"]),
        )
    return table


def render_page(
    sources: list[AuditedSource],
    previous: Counter[str] | None,
    diversity: Diversity,
    data: Data,
    trained: list["TokenRow"],
) -> str:
    from stages.pages.environment import environment

    codes = count_codes(sources)
    lengths = {
        kind: [n for source in sources for n in source.lengths[kind]]
        for kind in ("requests", "answers")
    }
    page = environment().get_template("audit.html.jinja")
    return page.render(
        sentence=summary_sentence(sources),
        sources=sources,
        codes=codes.most_common() + [(code, 0) for code in previous or {} if code not in codes],
        meanings=MEANINGS,
        previous=previous,
        rows=sum(source.report.rows for source in sources),
        actions=data.audit.actions,
        examples={
            code: [case for s in sources for case in s.examples.get(code, [])] for code in codes
        },
        distributions={
            kind: length_distribution(word_counts)
            for kind, word_counts in lengths.items()
            if word_counts
        },
        diversity=diversity.most_frequent(),
        trained=trained,
        distinct=diversity.distinct_sentence(),
    )
