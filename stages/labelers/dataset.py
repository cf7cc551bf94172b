"""`label=dataset`: read an existing preference dataset as a judged pool, with its answers as candidates."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

from stages.config.blocks.labels import PreferenceDataset
from stages.config.errors import UserError
from stages.config.installation import program
from stages.config.override_text import overrides
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.labelers.labeler import Labeler, Pool
from stages.store.records import (
    Candidate,
    Example,
    Judgement,
    Message,
    Records,
    content_id,
    prompt_id,
    save,
)
from stages.store.text_units import count_words, transcript
from stages.store.workspace import COLUMNS, SCRATCH, StageDir

# keys that read a file in the same way as data
SAME_KEYS = ("revision", "subset", "columns", "labels", "encoding", "reasoning")
TOLD = 0.02  # share of rows that contradict themselves, above which the user is warned


class PreferenceDatasetLabeler(Labeler):
    """Reads answers and their judgements from the file: which answer is better, or a score for each."""

    name = "dataset"

    def __init__(self, cfg: PreferenceDataset, out: StageDir):
        self.source, self.key, self.out = cfg.source, cfg.key, out
        self.rule, self.contradicting = cfg.contradicting or "keep", 0
        self.judgements_by_prompt = dict[str, list[Judgement]]()
        # all scores of a candidate that has several in the file
        self.votes = dict[str, list[float]]()

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """Return the file's prompts, candidates and unusable rows. The candidates are kept in a table on disk."""
        prompts, report = dict[str, Example](), ReadReport()
        row_ids = list[str]()
        name, scores, seen_ids = self.source.path.rsplit("/", 1)[-1], array("d"), set[str]()

        def candidates() -> Iterator[Candidate]:
            for row in convert(self.source, self.key, self.admit, Purpose.preferences, report):
                prompt = Example(
                    prompt_id(row.messages), row.messages, None, name, name, "preference"
                )
                prompt.licence, prompt.origin = row.licence, row.origin
                prompt.together = row.group
                prompts[prompt.id] = prompt
                row_ids.append(prompt.id)
                single_turns = (
                    [{"role": "assistant", "content": answer}] for answer in row.answers
                )
                models = row.models or [None] * len(row.answers)
                answers = [
                    candidate(prompt.id, turns, model or name)
                    for turns, model in zip(row.continuations or single_turns, models, strict=True)
                ]
                earlier = self.judgements_by_prompt.setdefault(prompt.id, [])
                earlier += self.judgements(
                    row, prompt.id, answers, {j.candidate_id: j for j in earlier}
                )
                scores.extend(row.scores or [] if row.graded else [])
                yield from {
                    c.candidate_id: c for c in answers if c.candidate_id not in seen_ids
                }.values()
                seen_ids.update(c.candidate_id for c in answers)

        file = self.out / SCRATCH / "candidates.parquet"
        file.parent.mkdir(exist_ok=True)
        save(file, candidates(), Candidate)
        report.kept.save(self.out / COLUMNS, row_ids)
        if self.contradicting > TOLD * report.rows:
            self.out.warn(
                f"{self.key}={self.source.path}: in {self.contradicting:,} of {report.rows:,} rows the rejected answer "
                f"has the higher score. {self.key.removesuffix('path')}contradicting={self.rule} applies."
            )
        low, high = min(scores, default=0.0), max(scores, default=0.0)
        judgements = [j for each in self.judgements_by_prompt.values() for j in each]
        are_scored = all(j.score is not None for j in judgements)
        if scores and are_scored and low == high:
            raise self.one_score_error(len(scores), low)
        flags = {*scores} <= {0.0, 1.0}
        for j in judgements:
            # if all scores are equal, the file's scale is unknown, and they stay
            if j.score is not None:
                mean = fmean(self.votes.get(str(j.candidate_id), [j.score]))
                j.score = (mean - low) / (high - low) if high > low else mean
                j.score = (1 + (mean > 0.5) - (mean < 0.5)) / 2 if flags else j.score
        if self.votes:
            how = (
                "the majority of their labels counts, and a tie as 0.5"
                if flags
                else "the mean counts"
            )
            report.notes.append(f"{len(self.votes)} answers have several scores in the file: {how}")
        unused = {self.source.path: [*report.unused_columns]}
        return Pool(
            [*prompts.values()],
            Records(file, Candidate),
            report.bad_rows,
            unused,
            report.notes,
            report.rows,
        )

    def one_score_error(self, count: int, score: float) -> UserError:
        """Return the error for a file in which all answers have one score. Good ones can be trained on by SFT."""
        problem = f"{self.key}={self.source.path}: all {count} answers have the score {score:g}"
        if score == 0:
            return UserError(
                f"{problem}, which is bad, and nothing is learnt from bad answers alone. Add rows with good ones."
            )
        if score != 1:
            return UserError(
                f"{problem}, so that none is better than another, and no setting changes that. Add rows with other scores."
            )
        settings = {"stage": "sft", "data": "file", "data.path": self.source.path}
        for key in SAME_KEYS:
            value = vars(self.source)[key]
            if value:
                settings[f"data.file.{key}"] = value
        command = " ".join([*program(), overrides(settings)])
        return UserError(
            f"{problem}, which is good. Add rows with bad answers, or train SFT on these: {command}"
        )

    def admit(self, row: ParsedRow) -> ParsedRow | None:
        """Return a row as it is used, by `contradicting`; None if it is left out."""
        self.contradicting += row.contradicts
        if not row.contradicts or self.rule == "keep":
            return row
        swapped = row._replace(scores=[1.0 - score for score in row.scores or []])
        return swapped if self.rule == "swap" else None

    def judgements(
        self,
        row: ParsedRow,
        prompt: str,
        of: list[Candidate],
        judged: Mapping[str | None, Judgement],
    ) -> list[Judgement]:
        """Return a row's preferences, or its scores (on the file's scale) for candidates that are not in `judged`."""
        scores = row.scores or []
        if row.graded:
            new = dict[str | None, Judgement]()
            for c, score in zip(of, scores, strict=True):
                name = c.candidate_id
                if first := judged.get(name) or new.get(name):
                    self.votes.setdefault(name, [first.score or 0.0]).append(score)
                else:
                    new[name] = Judgement(prompt, self.name, name, score)
            return [*new.values()]
        pairs = combinations(
            ((c.candidate_id, score) for c, score in zip(of, scores, strict=True)), 2
        )
        is_tie = len({*scores}) == 1  # several answers that are rejected are not compared
        words = (
            (a, b, "tie" if high == low else "ab"[high < low])
            for (a, high), (b, low) in pairs
            if a != b and (high != low or is_tie)
        )
        return [Judgement(prompt, self.name, a=a, b=b, preference=word) for a, b, word in words]

    def figures(self) -> dict[str, int]:
        return {"judged_again": sum(len(votes) - 1 for votes in self.votes.values())}

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judgements_by_prompt[prompt.id]


def candidate(prompt: str, turns: list[Message], policy: str) -> Candidate:
    """Return an answer as a candidate. The assistant's words are counted, since there is no tokenizer."""
    count = sum(count_words(turn["content"]) for turn in turns if turn["role"] == "assistant")
    answer = Candidate.from_text(prompt, transcript(turns), policy, "dataset", count)
    return (
        answer
        if len(turns) == 1
        else replace(
            answer,
            candidate_id=content_id(prompt, turns),
            continuation=turns,
            finish_reason="stop",
            answer_tokens=None,
        )
    )
