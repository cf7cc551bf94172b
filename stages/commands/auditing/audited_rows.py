"""The rows of a source as stage=data reads them, what an audit finds in each, and how they are distributed.

stage=data knows no tokenizer. An audit does where the store holds the base, so it also finds the rows that are too
long to be trained on once the template has rendered them.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from stages.commands.auditing.diversity import Diversity
from stages.config.blocks.data import Data, Form, Source
from stages.config.blocks.training import SFT
from stages.config.choices import Split
from stages.curation.audit.gate import Auditor, ends_of, fixed, request_of
from stages.curation.harmonize import Harmonizer
from stages.formats.column_mapping import Wanted, wanted_of
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, as_json, convert
from stages.store.node import Node
from stages.store.records import Message
from stages.store.splits import prompt_of, split_of
from stages.store.store import Store

UNUSABLE = "unusable"  # the code of a row that no stage can use; its reason is what was found
TOO_LONG = "too_long"
EXAMPLES = 3  # of every code
FEWER = (5, 10, 20, 50, 100, 200, 500)  # words: where a distribution is divided
SHORT: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]

Measure = Callable[[Wanted, list[Message], list[str]], str]  # what is said of a row; '' of one that fits


@dataclass
class Case:
    """A row in which something was found."""

    place: str
    codes: dict[str, str]
    request: str
    answer: str | None
    rejected: str | None


@dataclass
class AuditedSource:
    """What there was in a source, and what was found in it. `lengths`: in words, of requests and of answers."""

    key: str
    source: Source
    wanted: Wanted
    shape: Harmonizer = field(default_factory=lambda: Harmonizer(Form()))
    own: Callable[[Any], ParsedRow] | None = None  # what reads its rows in place of a format
    found: ReadReport = field(default_factory=ReadReport)
    codes: Counter[str] = field(default_factory=Counter)
    flagged: int = 0
    examples: dict[str, list[Case]] = field(default_factory=dict)
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"requests": [], "answers": []})

    def note(self, case: Case) -> None:
        """Count a row's codes. Of each, the rows in which most was found are kept as examples."""
        self.flagged += 1
        for code in case.codes:
            self.codes[code] += 1
            shown = self.examples.setdefault(code, [])
            shown.append(case)
            shown.sort(key=lambda each: -len(each.codes))  # stable: of equals the first
            del shown[EXAMPLES:]


def sources_of(nodes: dict[str, Node], own: Callable[[Any], ParsedRow] | None) -> list[AuditedSource]:
    """What stage=data reads, and the preference set that stage=label does."""
    data: Data = nodes["data"].config
    shape, read = Harmonizer(data.form, fixed(data.audit)), [source.config for source in nodes["data"].inputs.values()]
    looked = [AuditedSource(each.key, each.source, wanted_of(each.source), shape, own) for each in read]
    label = nodes["label"].config if "label" in nodes else None
    return looked + (
        [AuditedSource("label.path", label.source, Wanted.preferences)] if label and label.brings_pool else []
    )


def look(into: AuditedSource, auditor: Auditor, diversity: Diversity, measure: Measure | None, file: IO[str]) -> None:
    """Audit a source; `measure` tells which rows are too long. Rows in which something was found, and those that
    cannot be used, are written to `file`.

    Raises:
        UserError: where the source cannot be read at all.
    """
    for said, split in rows(into):
        best, worst = ends_of(said)
        request = request_of(said)
        into.lengths["requests"] += [len(request.split())] if request else []
        into.lengths["answers"] += [] if best is None else [len(best.split())]
        diversity.note(request, best)
        codes = auditor.findings(said, split)
        ends = [end for end in (best, worst) if end is not None]
        if measure and (long := measure(into.wanted, said.messages, ends)):
            codes[TOO_LONG] = long
        auditor.remember(said, split, into.found.place)
        if codes:
            into.note(Case(into.found.place, codes, request, best, worst))
            told = {"messages": said.messages, "answers": said.answers}
            write(file, into, into.found.place, codes, told | ({"scores": said.scores} if said.scores else {}))
    for row in into.found.bad:
        assert row.error is not None
        place, codes = f"{row.file}:{row.line}", {UNUSABLE: str(row.error)}
        into.note(Case(place, codes, json.dumps(as_json(row.value), ensure_ascii=False), None, None))
        write(file, into, place, codes, {"row": as_json(row.value)})


def rows(of: AuditedSource) -> Iterator[tuple[ParsedRow, str]]:
    """What a source's rows say, with the split of each; those that its splits leave out are passed over."""

    def placed(said: ParsedRow) -> tuple[ParsedRow, str] | None:
        if of.wanted is Wanted.preferences:
            return said, Split.preference
        said = of.shape(said)
        answer = said.answers[0] if len(said.answers) == 1 else None
        split = split_of(prompt_of(said.messages, answer), of.source.shares)
        return (said, split) if split else None

    return convert(of.source, of.key, placed, of.wanted, of.found, of.own)


def write(file: IO[str], of: AuditedSource, place: str, codes: dict[str, str], row: dict[str, object]) -> None:
    file.write(json.dumps({"source": of.key, "place": place, "codes": codes, **row}, ensure_ascii=False) + "\n")


def distribution(lengths: list[int]) -> list[tuple[str, int]]:
    """How many texts have how many words."""
    counts = np.bincount(np.searchsorted(FEWER, lengths, side="right"), minlength=len(FEWER) + 1).tolist()
    names = [f"{low}–{high - 1}" for low, high in zip((0, *FEWER), FEWER, strict=False)] + [f"{FEWER[-1]} or more"]
    return list(zip(names, counts, strict=True))


def measure(nodes: dict[str, Node], store: Store) -> Measure | None:
    """What finds rows longer than `sft.max_length`, and preferences longer than `dpo.max_length`, or than the model's
    context, under the template that SFT fixes; None where the base is not built.

    Raises:
        ContractError: where the template cannot keep the contract.
    """
    base, sft = nodes["sft"].inputs["base"], nodes["sft"].config
    assert isinstance(sft, SFT)
    if not store.find(base):
        return None
    from stages.models import chat_templates  # seconds of imports, which an audit without a base is spared
    from stages.models.loading import context_of, embedding_rows, load_tokenizer
    from stages.models.rendering import ContractError

    model = store.folder(base) / "model"
    terms = chat_templates.establish(load_tokenizer(model), sft.template, sft.train, embedding_rows(model))
    frame = len(terms.example(SHORT)[0])  # no less than the template adds to a turn
    context, dpo = context_of(model), nodes["dpo"].config if "dpo" in nodes else None

    def told(wanted: Wanted, messages: list[Message], answers: list[str]) -> str:
        block = dpo if dpo and wanted is Wanted.preferences else sft
        stage, (limit, too_long) = block.block, block.longest(context)
        for answer in answers:
            turns = [*messages, {"role": "assistant", "content": answer}]
            if sum(len(turn["content"].encode("utf-8", "replace")) + frame for turn in turns) <= limit:
                continue  # a token is a byte or more
            try:
                tokens = len(terms.example(turns)[0])
            except ContractError as reason:
                return f"{stage} drops it: {reason}"
            if tokens > limit:
                return f"{stage} drops it: {tokens:,} tokens, {too_long}"
        return ""

    return told
