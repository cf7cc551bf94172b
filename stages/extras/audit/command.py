"""`stage=audit`: report problems in the rows of `data.sources` and of a preference set, by code and with examples.

It builds nothing; `data.audit.actions` makes stage=data remove such rows. `audit.jsonl` in the store's folder lists
every row with a code, and `audit.html` shows the counts and examples."""

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich.table import Table

from stages.commands.result import Result, new_table, print_parts
from stages.config.blocks.data import Data, Source
from stages.config.blocks.objective import Training
from stages.config.blocks.training import SFT
from stages.config.choices import AUDIT_CODES, Split
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.curation.audit.auditor import Auditor, best_and_worst, held_out, request_of
from stages.curation.audit.codes import DESCRIPTIONS
from stages.curation.harmonize import Harmonizer
from stages.curation.user_code import KEY, load_user_code
from stages.formats.column_mapping import Purpose, source_purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, as_json, convert
from stages.pipeline import provenance
from stages.preflight.file_rows import prompt_with_each_answer
from stages.store import plugins, safe_files
from stages.store.node import Node
from stages.store.records import Message
from stages.store.splits import split_of
from stages.store.store import Store
from stages.store.workspace import StageDir

if TYPE_CHECKING:
    from stages.models.token_rows import TokenRow

log = logging.getLogger(__name__)

UNUSABLE = "unusable"  # the code of a row that no stage can use
MEANINGS = {UNUSABLE: "no stage can use the row, for the reason in the report"} | DESCRIPTIONS
REPEATS = ("duplicate", "near_duplicate")  # the codes of a row that repeats an earlier one
MOST_EXAMPLES = 3  # of a code, and of a source's rows as a training reads them
# in the store's root
ROWS = "audit.jsonl"
PAGE = "audit.html"
TEMPLATE = Path(__file__).with_name("audit.html.jinja")


@dataclass
class CountedCode:
    """A code with the rows that have it, and what stage=data does with them."""

    code: str
    meaning: str
    rows: int
    action: str


@dataclass
class CountedSource:
    """The rows of a source: all, those that splits or labels leave out, those that no stage can use, and those with a
    code."""

    key: str
    path: str
    rows: int
    left_out: int
    unusable: int
    flagged: int


@dataclass
class AuditResult(Result):
    """`usable`: the rows that a stage can use; `repeats`: those of them that repeat an earlier row. `rows_file` lists
    every row with a code, `page` shows examples. `next_command`: the plan of a run with these settings."""

    rows: int
    usable: int
    repeats: int
    flagged: int
    sources: list[CountedSource]
    codes: list[CountedCode]
    rows_file: Path
    page: Path
    next_command: str

    def show(self) -> None:
        print_parts(self.usable_sentence, self.codes_sentence, codes_table(self.codes))
        log.info("Rows with codes: %s. Page: %s", self.rows_file, self.page)

    @property
    def usable_sentence(self) -> str:
        """The sentence on the rows that can be used, and on those of them that repeat another."""
        repeats = (
            f"{self.repeats:,} of them repeat an earlier row"
            if self.repeats
            else "none repeats another"
        )
        return f"{self.usable:,} of {self.rows:,} rows can be used; {repeats}."

    @property
    def codes_sentence(self) -> str:
        """The sentence on the rows with a code."""
        if not self.flagged:
            return f"None of {self.rows:,} rows has a code."
        return (
            f"{self.flagged:,} of {self.rows:,} rows have a code ({self.flagged / self.rows:.1%})."
        )


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
    """The codes and examples of one source."""

    key: str
    source: Source
    purpose: Purpose
    harmonizer: Harmonizer
    read_row: Callable[[Any], ParsedRow] | None = None  # the user's reader, in place of a format
    report: ReadReport = field(default_factory=ReadReport)
    first: list[list[Message]] = field(default_factory=list)  # conversations of the first rows
    codes: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    repeats: int = 0
    examples: dict[str, list[Case]] = field(default_factory=dict)

    def record(self, case: Case, row: dict[str, Any], file: IO[str]) -> None:
        """Write a row with codes to `file`, and count them. The first rows of each code become its examples."""
        line = {"source": self.key, "place": case.place, "codes": case.codes, **row}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.flagged += 1
        self.codes.update(case.codes.keys())
        self.repeats += any(code in case.codes for code in REPEATS)
        for code in case.codes:
            cases = self.examples.setdefault(code, [])
            if len(cases) < MOST_EXAMPLES:
                cases.append(case)


def audited_sources(
    nodes: dict[str, Node], read_row: Callable[[Any], ParsedRow] | None
) -> list[AuditedSource]:
    """Return the sources of stage=data, and the preference set of `label=dataset`."""
    data: Data = nodes["data"].config
    harmonizer = Harmonizer(data.form, data.audit)
    sources = list[AuditedSource]()
    for node in nodes["data"].inputs.values():
        purpose = source_purpose(node.config.source)
        sources.append(
            AuditedSource(node.config.key, node.config.source, purpose, harmonizer, read_row)
        )
    label_is_dataset = "label" in nodes and nodes["label"].config.brings_pool
    if label_is_dataset:
        preferences = nodes["label"].config.source
        sources.append(AuditedSource("label.path", preferences, Purpose.preferences, harmonizer))
    return sources


def audit_source(audited: AuditedSource, auditor: Auditor, file: IO[str]) -> None:
    """Audit a source, and write every row with a code to `file`, those that cannot be used too."""
    for parsed, split in parsed_rows(audited):
        best, worst = best_and_worst(parsed)
        if best is not None and len(audited.first) < MOST_EXAMPLES:
            place_of_best = parsed.answers.index(best)
            audited.first.append(prompt_with_each_answer(parsed)[place_of_best])
        place = audited.report.place
        codes = auditor.findings(parsed, split)
        auditor.remember(parsed, split, place)
        row: dict[str, Any] = {"messages": parsed.messages, "answers": parsed.answers}
        if parsed.scores:
            row["scores"] = parsed.scores
        if codes:
            audited.record(Case(place, codes, request_of(parsed), best, worst), row, file)
    for bad in audited.report.bad_rows:
        value = as_json(bad.value)
        text = json.dumps(value, ensure_ascii=False)
        case = Case(f"{bad.file}:{bad.line}", {UNUSABLE: str(bad.error)}, text, None, None)
        audited.record(case, {"row": value}, file)


def parsed_rows(audited: AuditedSource) -> Iterator[tuple[ParsedRow, str]]:
    """Yield the parsed rows of a source with their splits, without rows that belong to no split."""

    def with_split_if_any(parsed: ParsedRow) -> tuple[ParsedRow, str] | None:
        if audited.purpose is Purpose.preferences:
            return parsed, Split.preference
        parsed = audited.harmonizer(parsed)
        shares = audited.source.shares
        split = split_of(parsed.messages, parsed.answers, parsed.group, shares)
        return (parsed, split) if split else None  # None: left out

    return convert(
        audited.source,
        audited.key,
        with_split_if_any,
        audited.purpose,
        audited.report,
        audited.read_row,
    )


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> AuditResult:
    """Audit every source, write rows and page, and return the counts. Raise UserError without any source."""
    data: Data = nodes["data"].config
    with (
        tempfile.TemporaryDirectory() as folder,
        plugins.explain_errors(data.own, KEY, Path(folder)),
    ):
        _, users_reader = load_user_code(
            data.own, StageDir(Path(folder), lambda metrics, step: None)
        )
        sources = audited_sources(nodes, users_reader)
        if not sources:
            raise UserError(
                "stage=audit needs rows: 'data.sources=[{path: FILE}]', or label=dataset label.path=FILE."
            )
        auditor = Auditor(AUDIT_CODES, held_out(data.audit), data.audit.thresholds)
        store.root.mkdir(parents=True, exist_ok=True)
        with (
            safe_files.draft_of(store.root / ROWS) as draft,
            open(draft, "w", encoding="utf-8", errors="backslashreplace") as file,
        ):
            for source in sources:
                audit_source(source, auditor, file)
    for source in sources:
        for line in source.report.notes:
            log.info("%s", visible(f"{source.key}: {line}"))
    summary = sources[0].harmonizer.describe()
    if summary:
        log.info("data.form and data.audit: %s", summary)
    trained = rows_as_trained(cfg, store, nodes, sources)
    result = count_rows(sources, data, store, provenance.command("plan", overrides))
    write_page(result, sources, trained)
    return result


def rows_as_trained(
    cfg: Config, store: Store, nodes: dict[str, Node], sources: list[AuditedSource]
) -> list["TokenRow"]:
    """Print and return the first rows of each source as a training reads them; none if the model is not here."""
    # imported here, as it loads torch
    from stages.models.token_rows import row_in_words, token_row
    from stages.preflight.row_lengths import contract_after_sft

    contract_and_context = contract_after_sft(nodes, store)
    if contract_and_context is None:
        log.info("Rows are not shown token by token: the model or its tokenizer is not here.")
        return []
    contract, context = contract_and_context
    rows = list["TokenRow"]()
    for source in sources:
        training: Training = cfg.dpo
        if source.purpose is not Purpose.preferences and isinstance(cfg.sft, SFT):
            training = cfg.sft
        limit, reason, _ = training.length_limit(context)
        for number, conversation in enumerate(source.first, 1):
            row = token_row(f"{source.key}, row {number}", contract, conversation)
            if len(row.tokens) > limit:
                row.note = f"left out: {reason}"
            rows.append(row)
            log.info("%s", visible(row_in_words(row), keep="\n"))
    return rows


def count_rows(
    sources: list[AuditedSource], data: Data, store: Store, next_command: str
) -> AuditResult:
    """Return the counts of all sources."""
    counts = sum((source.codes for source in sources), Counter[str]())
    counted_sources = [
        CountedSource(
            source.key,
            str(source.source.path),
            source.report.rows,
            source.report.left_out,
            len(source.report.bad_rows),
            source.flagged,
        )
        for source in sources
    ]
    rows = sum(source.rows for source in counted_sources)
    lost = sum(source.left_out + source.unusable for source in counted_sources)
    actions = {UNUSABLE: "quarantine", **data.audit.actions}
    return AuditResult(
        rows=rows,
        usable=rows - lost,
        repeats=sum(source.repeats for source in sources),
        flagged=sum(source.flagged for source in sources),
        sources=counted_sources,
        codes=[
            CountedCode(code, MEANINGS[code], count, actions.get(code, "keep"))
            for code, count in counts.most_common()
        ],
        rows_file=store.root / ROWS,
        page=store.root / PAGE,
        next_command=next_command,
    )


def write_page(
    result: AuditResult, sources: list[AuditedSource], trained: list["TokenRow"]
) -> None:
    """Write the page of the counts, with examples."""
    from stages.pages.environment import page_template

    examples = {each.code: list[Case]() for each in result.codes}
    notes = list[str]()
    for source in sources:
        notes += source.report.notes
        for code, cases in source.examples.items():
            examples[code] += cases
    page = page_template(TEMPLATE)
    html = page.render(
        result=result, notes=notes, meanings=MEANINGS, examples=examples, trained=trained
    )
    safe_files.write(result.page, html)


def codes_table(codes: list[CountedCode]) -> Table:
    """Return the table of codes with their meanings and rows."""
    table = new_table("code", "meaning", numbers=["rows"])
    for each in codes:
        table.add_row(each.code, each.meaning, f"{each.rows:,}")
    return table
