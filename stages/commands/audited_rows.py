"""Audit the rows of a source as stage=data reads them, and measure how long and how diverse their texts are."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from stages.config.blocks.data import Data, Form, Source
from stages.config.choices import Split
from stages.curation.answer_rules import FUNCTION_WORDS
from stages.curation.audit.auditor import Auditor, best_and_worst, request_of
from stages.curation.audit.overlap import word_runs
from stages.curation.harmonize import Harmonizer
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, as_json, convert
from stages.store.node import Node
from stages.store.splits import draw_split, prompt_of
from stages.store.text_units import lower_words

UNUSABLE = "unusable"  # the code of a row that no stage can use
EXAMPLES = 3  # per code
FEWER = (5, 10, 20, 50, 100, 200, 500)  # bounds of the length distribution, in words
MOST_SHOWN = 12  # words or runs in each table
POLITE = re.compile(r"\A\W*((please|kindly|can you|could you|would you|i want you to|i would like you to)\W+)*", re.I)
FEWEST = 4  # letters; shorter words are not counted as topics
RUN = 4  # words in a counted run
DISTINCT = 3  # words in a run for distinct-3
MOST_ANSWERS = 2000  # whose runs are counted, so that memory is bounded


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
            cases.sort(key=lambda each: -len(each.codes))  # stable, so of equal rows the first stays
            del cases[EXAMPLES:]


class Diversity:
    """Counts of words by rows: a word that occurs twice in one row counts once. Only the first answers are counted."""

    def __init__(self) -> None:
        self.requests = self.answers = self.seen = 0
        self.verbs, self.topics, self.runs = Counter[str](), Counter[str](), Counter[tuple[str, ...]]()
        self.distinct = set[tuple[str, ...]]()

    def note(self, request: str, answer: str | None) -> None:
        if request:
            self.requests += 1
            request_words = lower_words(POLITE.sub("", request))
            self.verbs.update(request_words[:1])
            topics = [w for w in request_words[1:] if len(w) >= FEWEST and w.isalpha() and w not in FUNCTION_WORDS]
            self.topics.update(dict.fromkeys(topics, 1))
        if answer and self.answers < MOST_ANSWERS:
            self.answers += 1
            answer_words = lower_words(answer)
            self.runs.update(dict.fromkeys(word_runs(answer_words, RUN), 1))  # in order, which decides between ties
            triples = list(word_runs(answer_words, DISTINCT))
            self.seen += len(triples)
            self.distinct.update(triples)

    def most_frequent(self) -> dict[str, tuple[list[tuple[str, int]], int]]:
        """Return the most frequent words and runs with their counts, and the number of rows, by heading."""
        counters = {"First word of requests": self.verbs, "Words of requests": self.topics}
        frequent = {name: (words.most_common(MOST_SHOWN), self.requests) for name, words in counters.items() if words}
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


def audited_sources(nodes: dict[str, Node], read_row: Callable[[Any], ParsedRow] | None) -> list[AuditedSource]:
    """Return the sources of stage=data, and the preference set of `label=dataset`."""
    data: Data = nodes["data"].config
    harmonizer, sources = Harmonizer(data.form, data.audit), list[AuditedSource]()
    for block in (node.config for node in nodes["data"].inputs.values()):
        sources.append(AuditedSource(block.key, block.source, source_purpose(block.source), harmonizer, read_row))
    if "label" in nodes and nodes["label"].config.brings_pool:
        sources.append(AuditedSource("label.path", nodes["label"].config.source, Purpose.preferences))
    return sources


def audit_source(audited: AuditedSource, auditor: Auditor, diversity: Diversity, file: IO[str]) -> None:
    """Audit a source, and write every row with a code to `file`. Raise UserError if it cannot be read at all."""
    for parsed, split in parsed_rows(audited):
        best, worst = best_and_worst(parsed)
        request = request_of(parsed)
        audited.lengths["requests"] += [len(request.split())] if request else []
        audited.lengths["answers"] += [] if best is None else [len(best.split())]
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
        audited.note(Case(place, codes, json.dumps(as_json(row.value), ensure_ascii=False), None, None))
        write_row(file, audited, place, codes, {"row": as_json(row.value)})


def parsed_rows(audited: AuditedSource) -> Iterator[tuple[ParsedRow, str]]:
    """Yield the parsed rows of a source with their splits, without rows that belong to no split."""

    def with_split(parsed: ParsedRow) -> tuple[ParsedRow, str] | None:
        if audited.purpose is Purpose.preferences:
            return parsed, Split.preference
        parsed = audited.harmonizer(parsed)
        answer = parsed.answers[0] if len(parsed.answers) == 1 else None
        split = draw_split(prompt_of(parsed.messages, answer), audited.source.shares)
        return (parsed, split) if split else None

    return convert(audited.source, audited.key, with_split, audited.purpose, audited.report, audited.read_row)


def write_row(file: IO[str], audited: AuditedSource, place: str, codes: dict[str, str], row: dict[str, Any]) -> None:
    file.write(json.dumps({"source": audited.key, "place": place, "codes": codes, **row}, ensure_ascii=False) + "\n")


def length_distribution(lengths: list[int]) -> list[tuple[str, int]]:
    """Return how many texts have 0–4 words, 5–9 words and so on."""
    counts = np.bincount(np.searchsorted(FEWER, lengths, side="right"), minlength=len(FEWER) + 1).tolist()
    names = [f"{low}–{high - 1}" for low, high in zip((0, *FEWER), FEWER, strict=False)] + [f"{FEWER[-1]} or more"]
    return list(zip(names, counts, strict=True))
