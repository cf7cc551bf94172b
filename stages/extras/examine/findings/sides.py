"""The two models of an examination, and what is known of them before a fault is looked for."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from stages.config.installation import program
from stages.evaluation import claims
from stages.evaluation.intervals import Interval
from stages.evaluation.results import Results
from stages.extras.examine.findings.answer_readings import Readings
from stages.extras.examine.findings.finding import OF_FILES, TEXTS, Finding
from stages.extras.examine.folders.difference import NONE, Row
from stages.models.contract import Contract, load_contract, served_stops
from stages.models.loading import count_embedding_rows, load_tokenizer
from stages.models.rendering import GOLDEN
from stages.store.records import Candidate, Message, Pair


@dataclass
class Side:
    """One of the two models: its title, its folder as it came, and its folder under the contract of its template.
    `stored`: the type of its weights in the files that came. `warnings`: what was said when they were loaded. `answers`:
    its own answers by prompt. `place`: the path or id that the user typed."""

    title: str
    came: Path
    published: Path
    stored: str
    warnings: list[str]
    answers: dict[str, Candidate] = field(default_factory=dict)
    place: str = ""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as it came."""
        return load_tokenizer(self.came)

    @cached_property
    def contract(self) -> Contract:
        return load_contract(self.published)

    @property
    def end_of_turn(self) -> str:
        return str(self.contract.tokenizer.convert_ids_to_tokens(self.contract.stop_ids[0]))

    @property
    def stops(self) -> list[str]:
        """The tokens at which servers stop, by the files that came."""
        ids = served_stops(self.came, self.tokenizer)
        return [str(self.tokenizer.convert_ids_to_tokens(i)) for i in ids]

    def facts(self) -> dict[str, str]:
        """Return what decides how the model is read and stopped, by name."""
        tokenizer, contract = self.tokenizer, self.contract
        return {
            "a prompt": contract.render(GOLDEN[0][:1], to_answer=True),
            "a turn would end with": self.end_of_turn,
            "servers stop at": ", ".join(self.stops) or NONE,
            "pads with": str(tokenizer.pad_token or NONE),
            "begins with": str(tokenizer.bos_token or NONE),
            "tokens": f"{len(tokenizer):,}, and {count_embedding_rows(self.came):,} rows",
            "weights": self.stored or "not known",
        }


@dataclass
class Examined:
    """What the faults are looked for in. `adapter`: the folder of the adapter that was merged into the start, if one
    was. `merged_adapter`: that of an adapter beside weights that were merged elsewhere, which lie in `merged_weights` if
    they are not the examined ones. `results`: those of the
    evaluation. `readings`: likelihoods of the preferences' answers; None if no template could render them.
    `largest_rate`: the largest learning rate in a training log beside the model. `folder_rows`: the differences of both
    folders, key by key, under `folder_titles`."""

    before: Side
    after: Side
    pairs: list[Pair]
    adapter: Path | None
    results: Results
    readings: Readings | None = None
    merged_adapter: Path | None = None
    merged_weights: Path | None = None
    largest_rate: float | None = None
    again: str = ""
    folder_rows: Sequence[Row] = ()
    folder_titles: Sequence[str] = ()

    @property
    def from_chat(self) -> bool:
        """True if the training started from a model of chats. SFT moves any other far away, and prefers nothing."""
        return bool(self.before.tokenizer.chat_template)

    @property
    def conversations(self) -> Sequence[list[Message]]:
        """The conversations that are compared: two of our own, then those of the first pairs."""
        return [*GOLDEN, *([*pair.prompt, *pair.chosen] for pair in self.pairs[:20])]

    def finding(
        self,
        name: str,
        seen: str,
        scope: str,
        *,
        is_fault: bool = True,
        certain: bool = False,
        interval: Interval | None = None,
        causes: Sequence[str] | None = None,
    ) -> Finding:
        """Return the finding of this name in finding.yaml. `scope`: by what it was `seen`. `causes`: in place of those in
        the file."""
        texts = TEXTS["findings"][name]
        words = {
            "program": shlex.join(program()),
            "again": self.again,
            "model": self.after.place or self.after.title,
            "start": self.before.place or self.before.title,
            "before": self.before.title,
        }
        listed = texts["causes"] if causes is None else causes
        return Finding(
            name,
            claims.finding(seen, scope, is_fault=is_fault, is_certain=certain),
            interval,
            [cause.format(**words) for cause in listed],
            texts["apart"].format(**words),
        )

    def fact(self, name: str, seen: str) -> list[Finding]:
        """Return a fault that the files prove, as a list; empty if nothing was `seen`."""
        if not seen:
            return []
        return [self.finding(name, seen, OF_FILES, certain=True)]
