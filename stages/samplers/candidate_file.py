"""Candidates from a file of completions, for the data's prompts or for the file's own prompts."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.format import CUT, ParsedRow
from stages.formats.readers.row import BadRow, Way
from stages.formats.source_reading import ReadReport, convert, quarantine, warn_unused_columns
from stages.store.records import Candidate, Example, prompt_id
from stages.store.text_units import count_words
from stages.store.workspace import COLUMNS, StageDir

Select = Callable[[Iterable[Example]], list[Example]]


def read_candidates(
    cfg: CandidateFile, data_prompts: list[Example] | None, select_round: Select, out: StageDir
) -> tuple[list[Example], list[Candidate]]:
    """Return the prompts of this round, and their candidates in the file. `data_prompts` are the prompts that the file
    may answer; None means the file's own prompts. Rows for prompts of other rounds are skipped with a warning.
    Raise UserError if more rows than `sample.max_failed` cannot be used, or no row answers a prompt of this round."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    name = Path(str(cfg.file)).name
    report = ReadReport()
    asked = None if data_prompts is None else {prompt.id for prompt in data_prompts}
    prompts = {prompt.id: prompt for prompt in data_prompts or ()}
    answers = defaultdict[str, Answers](Answers)  # by prompt
    validate = partial(validate_row, asked=asked)
    row_ids = list[str]()
    for row in convert(cfg.source, f"{cfg.key}.file", validate, Purpose.candidates, report):
        prompt = prompt_id(row.messages)
        row_ids.append(prompt)
        if prompt not in prompts:
            prompts[prompt] = example_of(prompt, row, name)
        answers[prompt].add(row)
    quarantine(report.bad_rows, report.rows, cfg.max_failed or 0.0, out, "sample.max_failed")
    report.kept.save(out / COLUMNS, row_ids)
    warn_unused_columns(str(cfg.file), [*report.unused_columns], out, report.kept.columns)
    for line in report.notes:
        out.inform(line)
    rows = sum(each.rows for each in answers.values())
    copies = 0
    unanswered = 0
    round_prompts = select_round(prompts.values())
    candidates = list[Candidate]()
    for example in round_prompts:
        given = answers[example.id]
        rows -= given.rows
        copies += given.copies
        unanswered += not given.models
        for text, model in given.models.items():
            words = count_words(text)  # for want of a tokenizer
            candidates.append(Candidate.from_text(example.id, text, model or name, "file", words))
    if not candidates:
        raise UserError(
            f"{cfg.key}.file={cfg.file}: no row answers a prompt of this round. Type sample.own_prompts=true to use the file's "
            "own prompts."
        )
    warn_left_out(out, name, copies, "completions were skipped as copies")
    warn_left_out(out, name, unanswered, "prompts have no candidate in this file")
    warn_left_out(out, name, rows, "rows were skipped: their prompts are not in this round")
    return round_prompts, candidates


def warn_left_out(out: StageDir, file: str, count: int, what: str) -> None:
    if count:
        out.warn(f"{file}: {count} {what}")


@dataclass
class Answers:
    """The different answers to a prompt, each with the model that gave it if the file tells; the rows that hold them,
    and the answers that are copies of another."""

    models: dict[str, str | None] = field(default_factory=dict)
    rows: int = 0
    copies: int = 0

    def add(self, row: ParsedRow) -> None:
        self.rows += 1
        models = row.models or [None] * len(row.answers)
        for answer, model in zip(row.answers, models, strict=True):
            self.copies += answer in self.models
            self.models.setdefault(answer, model)


def validate_row(row: ParsedRow, asked: set[str] | None) -> ParsedRow:
    """Return a row with a completion. `asked`: the prompts that it may answer; None: any."""
    if not row.answers:
        has_answer = any(turn["role"] == "assistant" for turn in row.messages)
        raise BadRow("", "has no completion", *[CUT] * has_answer)
    if row.trained:
        raise BadRow("", "has a weight of 0, and no setting makes a candidate of that")
    if asked is not None and prompt_id(row.messages) not in asked:
        own = Way({"sample.own_prompts": True}, "to use the file's own prompts")
        raise BadRow("prompt", "is not a sampled prompt of the data", own)
    return row


def example_of(prompt: str, row: ParsedRow, name: str) -> Example:
    """Return the prompt of a row, from the file of this name."""
    example = Example(prompt, row.messages, None, name, name, "preference")
    example.licence = row.licence
    example.origin = row.origin
    example.together = row.group
    return example
