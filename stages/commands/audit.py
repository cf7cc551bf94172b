"""`stage=audit`: report problems in the rows of `data.sources` and of a preference set, by code and with examples.

It builds nothing; `data.audit.actions` makes stage=data remove such rows. `audit.jsonl` in the store's folder lists
every row with a code, and `audit.html` shows the counts and examples."""

import logging
import os
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.commands import audited_rows
from stages.commands.audited_rows import AuditedSource, Diversity, length_distribution
from stages.config.blocks.data import Data
from stages.config.choices import AUDIT_CODES
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.curation.audit.auditor import Auditor, held_out
from stages.curation.audit.codes import DESCRIPTIONS
from stages.curation.user_code import KEY, load_user_code
from stages.store import plugins, safe_files
from stages.store.node import Node
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.store import Store
from stages.store.workspace import StageDir

log = logging.getLogger(__name__)

ROWS, PAGE = "audit.jsonl", "audit.html"  # in the store's root
COUNTS = "audit.json"  # counts of the last audit, in the store's cache
MEANINGS = {audited_rows.UNUSABLE: "no stage can use the row, for the reason in the report"} | DESCRIPTIONS


def run(cfg: Config, store: Store, nodes: dict[str, Node], *rest: object) -> None:
    """Audit every source, print counts, write rows and page. Raise UserError without a source that can be read."""
    data: Data = nodes["data"].config
    with tempfile.TemporaryDirectory() as folder, plugins.explain_errors(data.own, KEY, Path(folder)):
        _, own = load_user_code(data.own, StageDir(Path(folder), lambda metrics, step: None))
        audit(data, audited_rows.audited_sources(nodes, own), store)


def audit(data: Data, sources: list[AuditedSource], store: Store) -> None:
    """Audit these sources, print the table, and write the rows and the page to the store."""
    if not sources:
        raise UserError("stage=audit needs rows: 'data.sources=[{path: FILE}]', or label=dataset label.path=FILE.")
    auditor = Auditor(AUDIT_CODES, held_out(data.audit), data.audit.thresholds)
    diversity = Diversity()
    file, counts = store.root / ROWS, store.root / "cache" / COUNTS
    paths, last = [source.source.path for source in sources], read_note(counts, require_keys("sources", "codes"))
    previous = Counter[str](last["codes"]) if last and last["sources"] == paths else None
    counts.parent.mkdir(parents=True, exist_ok=True)
    with safe_files.draft_of(file) as draft, open(draft, "w", encoding="utf-8", errors="backslashreplace") as rows:
        for source in sources:
            audited_rows.audit_source(source, auditor, diversity, rows)
    for source in sources:
        for line in source.report.notes:
            log.info("%s", visible(f"{source.key}: {line}"))
    if summary := sources[0].harmonizer.describe():
        log.info("data.form and data.audit: %s", summary)
    console = Console(width=None if os.isatty(1) else 120, markup=False)
    console.print(summary_sentence(sources), codes_table(sources, previous))
    safe_files.write(store.root / PAGE, render_page(sources, previous, diversity, data))
    write_note(counts, {"sources": paths, "codes": count_codes(sources)})
    log.info("Rows with codes: %s. Page: %s", file, store.root / PAGE)


def count_codes(sources: list[AuditedSource]) -> Counter[str]:
    return sum((source.codes for source in sources), Counter[str]())


def summary_sentence(sources: list[AuditedSource]) -> str:
    """Return the sentence that sums up the audit."""
    rows, flagged = sum(source.report.rows for source in sources), sum(source.flagged for source in sources)
    if not flagged:
        return f"None of {rows:,} rows has a code."
    most = ", ".join(f"{name} ({count:,})" for name, count in count_codes(sources).most_common(3))
    return f"{flagged:,} of {rows:,} rows have a code ({flagged / rows:.1%}). The most frequent: {most}."


def codes_table(sources: list[AuditedSource], previous: Counter[str] | None) -> Table:
    table = Table("code", "meaning", box=None, header_style="bold", pad_edge=False)
    for title in ("rows", *(["last time"] if previous is not None else [])):
        table.add_column(title, justify="right", no_wrap=True)
    for code, count in count_codes(sources).most_common():
        table.add_row(code, MEANINGS[code], f"{count:,}", *([] if previous is None else [f"{previous[code]:,}"]))
    return table


def render_page(sources: list[AuditedSource], previous: Counter[str] | None, diversity: Diversity, data: Data) -> str:
    from stages.pages.environment import environment

    codes = count_codes(sources)
    lengths = {kind: [n for source in sources for n in source.lengths[kind]] for kind in ("requests", "answers")}
    page = environment().get_template("audit.html.jinja")
    return page.render(
        sentence=summary_sentence(sources),
        sources=sources,
        codes=codes.most_common() + [(code, 0) for code in previous or {} if code not in codes],
        meanings=MEANINGS,
        previous=previous,
        rows=sum(source.report.rows for source in sources),
        actions=data.audit.actions,
        examples={code: [case for s in sources for case in s.examples.get(code, [])] for code in codes},
        distributions={kind: length_distribution(word_counts) for kind, word_counts in lengths.items() if word_counts},
        diversity=diversity.most_frequent(),
        distinct=diversity.distinct_sentence(),
    )
