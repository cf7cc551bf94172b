"""`stage=audit`: what is wrong with the rows of `data.sources`, and of a preference set, by code and with examples.
Nothing is built: `data.audit.actions` has stage=data take rows out.

`audit.jsonl` in the store's folder has every row in which something was found, `audit.html` tells it on a page.
"""

import logging
import os
import tempfile
import uuid
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.commands.auditing.audited_rows import (
    TOO_LONG,
    UNUSABLE,
    AuditedSource,
    Measure,
    distribution,
    look,
    measure,
    sources_of,
)
from stages.commands.auditing.diversity import Diversity
from stages.config.blocks.data import Data
from stages.config.choices import AUDIT_CODES
from stages.config.errors import UserError, visible
from stages.curation.audit.codes import TOLD
from stages.curation.audit.gate import Auditor, held_out
from stages.curation.user_code import KEY, own_part
from stages.pipeline import provenance
from stages.store import plugins, safe_files
from stages.store.node import Node
from stages.store.sealed_json import having, note, recall
from stages.store.store import Store
from stages.store.workspace import StageDir

log = logging.getLogger(__name__)

ROWS, PAGE = "audit.jsonl", "audit.html"  # in the store's root
COUNTS = "audit.json"  # what the last audit counted, in the store's cache
TELLS = {
    UNUSABLE: "the row cannot be used, and its reason is told",
    TOO_LONG: "longer than a training takes, under the template",
} | TOLD


def show(nodes: dict[str, Node], store: Store) -> None:
    """Audit every source, print how often each code was found, and write rows and page.

    Raises:
        UserError: where there is no source, or one cannot be read.
    """
    data: Data = nodes["data"].config
    with tempfile.TemporaryDirectory() as folder, plugins.told(data.own, KEY, Path(folder)):
        _, own = own_part(data.own, StageDir(Path(folder), lambda metrics, step: None))
        audit(data, sources_of(nodes, own), measure(nodes, store), store)


def audit(data: Data, looked: list[AuditedSource], lengths: Measure | None, store: Store) -> None:
    """Audit these sources."""
    if not looked:
        raise UserError("there is nothing to audit: 'data.sources=[{path: FILE}]' or label=dataset label.path=FILE.")
    auditor = Auditor(AUDIT_CODES, held_out(data.audit), data.audit.thresholds)
    diversity = Diversity()
    file, counts = store.root / ROWS, store.root / "cache" / COUNTS
    before = counts_before(counts, looked)
    counts.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{ROWS}-{uuid.uuid4().hex}.draft")
    try:
        with open(draft, "w", encoding="utf-8", errors="backslashreplace") as rows:
            for source in looked:
                look(source, auditor, diversity, lengths, rows)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    for source in looked:
        for line in source.found.told:
            log.info("%s", visible(f"{source.key}: {line}"))
    if told := looked[0].shape.told():
        log.info("data.form and data.audit: %s", told)
    Console(width=None if os.isatty(1) else 120, markup=False).print(sentence(looked), table(looked, before))
    safe_files.write(store.root / PAGE, html(looked, before, diversity, data))
    note(counts, {"sources": paths(looked), "codes": total(looked)})
    if not lengths:
        way = provenance.command("base", [])
        log.info("Whether rows are too long to be trained on needs the tokenizer: %s builds it.", way)
    log.info("The rows: %s. The page: %s", file, store.root / PAGE)


def counts_before(file: Path, looked: list[AuditedSource]) -> Counter[str] | None:
    """How often each code was found by the last audit in this store; None where there was none of the same sources."""
    told = recall(file, having("sources", "codes"))
    return Counter(told["codes"]) if told and told["sources"] == paths(looked) else None


def paths(looked: list[AuditedSource]) -> list[str]:
    return [source.source.path for source in looked]


def total(looked: list[AuditedSource]) -> Counter[str]:
    return sum((source.codes for source in looked), Counter[str]())


def sentence(looked: list[AuditedSource]) -> str:
    """What was found, in one."""
    rows, flagged, codes = sum(s.found.rows for s in looked), sum(s.flagged for s in looked), total(looked)
    if not flagged:
        return f"Nothing was found in {rows:,} rows."
    most = ", ".join(f"{name} ({count:,})" for name, count in codes.most_common(3))
    return f"Something was found in {flagged:,} of {rows:,} rows ({flagged / rows:.1%}), most often {most}."


def table(looked: list[AuditedSource], before: Counter[str] | None) -> Table:
    shown = Table("code", "what it says", box=None, header_style="bold", pad_edge=False)
    for title in ("rows", *(["last time"] if before is not None else [])):
        shown.add_column(title, justify="right", no_wrap=True)
    for code, count in total(looked).most_common():
        shown.add_row(code, TELLS[code], f"{count:,}", *([] if before is None else [f"{before[code]:,}"]))
    return shown


def html(looked: list[AuditedSource], before: Counter[str] | None, diversity: Diversity, data: Data) -> str:
    """The page."""
    from stages.pages.environment import environment

    codes = total(looked)
    lengths = {what: [n for source in looked for n in source.lengths[what]] for what in ("requests", "answers")}
    page = environment().get_template("audit.html.jinja")
    return page.render(
        sentence=sentence(looked),
        looked=looked,
        codes=codes.most_common() + [(code, 0) for code in before or {} if code not in codes],
        tells=TELLS,
        before=before,
        rows=sum(source.found.rows for source in looked),
        actions=data.audit.actions,
        examples={code: [case for s in looked for case in s.examples.get(code, [])] for code in codes},
        distributions={what: distribution(those) for what, those in lengths.items() if those},
        diversity=diversity.tables(),
        distinct=diversity.told(),
    )
