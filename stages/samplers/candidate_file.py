"""Candidates from a file of completions, for the data's prompts or for the file's own prompts."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.source_reading import ReadReport, convert, quarantine, warn_unused_columns
from stages.store.records import Candidate, Example, prompt_id
from stages.store.text_units import count_words
from stages.store.workspace import StageDir

Select = Callable[[Iterable[Example]], list[Example]]


def read_candidates(
    cfg: CandidateFile, data_prompts: list[Example] | None, select_round: Select, out: StageDir
) -> tuple[list[Example], list[Candidate]]:
    """Return the prompts of this round, and their candidates in the file. `data_prompts` are the prompts that the file
    may answer; None means the file's own prompts. Rows for prompts of other rounds are skipped with a warning.
    Raise UserError if more rows than `sample.max_failed` cannot be used, or no row answers a prompt of this round."""
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # an earlier attempt may have been killed
    name, key, report = Path(str(cfg.file)).name, f"{cfg.key}.file", ReadReport()
    prompts = {p.id: p for p in data_prompts or ()}
    answers = defaultdict[str, Counter[str]](Counter)
    rows = Counter[str]()
    models = dict[tuple[str, str], str | None]()  # by prompt and answer

    def validate_row(row: ParsedRow) -> ParsedRow:
        if not row.answers:
            raise BadRow("", "has no completion")
        if row.trained:
            raise BadRow("", "has a weight, which candidates cannot have")
        if data_prompts is not None and prompt_id(row.messages) not in prompts:
            way_out = "Type sample=file sample.own_prompts=true to use the file's own prompts"
            raise BadRow("prompt", f"is not a sampled prompt of the data. {way_out}")
        return row

    for row in convert(cfg.source, key, validate_row, Purpose.candidates, report):
        prompt = prompt_id(row.messages)
        if prompt not in prompts:
            prompts[prompt] = Example(prompt, row.messages, None, name, name, "preference")
            prompts[prompt].licence, prompts[prompt].origin = row.licence, row.origin
            prompts[prompt].together = row.group
        rows[prompt] += 1
        answers[prompt].update(row.answers)
        for answer, model in zip(row.answers, row.models or (), strict=False):
            models.setdefault((prompt, answer), model)
    quarantine(report.bad_rows, report.rows, cfg.max_failed or 0.0, out, "sample.max_failed")
    warn_unused_columns(str(cfg.file), [*report.unused_columns], out)
    for line in report.notes:
        out.inform(line)
    round_prompts = select_round(prompts.values())
    texts = {p.id: answers[p.id] for p in round_prompts}
    if not any(texts.values()):
        raise UserError(
            f"{key}={cfg.file}: no row answers a prompt of this round. Check the file and sample.columns."
        )
    other_rounds = rows.total() - sum(rows[prompt] for prompt in texts)
    copies = sum(counts.total() - len(counts) for counts in texts.values())
    for count, label in (
        (other_rounds, "rows were skipped: their prompts are not in this round"),
        (copies, "completions were skipped as copies"),
        (sum(not counts for counts in texts.values()), "prompts have no candidate in this file"),
    ):
        if count:
            out.warn(f"{name}: {count} {label}")
    return round_prompts, [
        make_candidate(prompt, text, models.get((prompt, text)) or name)
        for prompt, counts in texts.items()
        for text in counts
    ]


def make_candidate(prompt: str, text: str, policy: str) -> Candidate:
    # words, for want of a tokenizer
    return Candidate.from_text(prompt, text, policy, "file", count_words(text))
