"""`label=dataset`: an existing preference set, turned into a judged pool of two candidates per prompt."""

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Label
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.source_reading import ReadReport, convert
from stages.labelers.labeler import Labeler, Pool
from stages.store.records import Candidate, Example, Judgement, Records, prompt_id, save
from stages.store.workspace import SCRATCH, StageDir


class Dataset(Labeler):
    """Judges nothing: the file says which answer is better, or how good each is, and brings them."""

    name = "dataset"

    def __init__(self, source: Source, key: str, out: StageDir):
        self.source, self.key, self.out, self.judgements_by_prompt = source, key, out, dict[str, list[Judgement]]()
        self.repeated = 0

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "Dataset":
        return cls(cfg.source, cfg.key, out)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The file's prompts and their candidates, which wait in a table, and the rows that cannot be used."""
        prompts, report = dict[str, Example](), ReadReport()
        name, scores, seen_ids = self.source.path.rsplit("/", 1)[-1], array("d"), set[str]()

        def candidates() -> Iterator[Candidate]:
            for row in convert(self.source, self.key, lambda said: said, Purpose.preferences, report):
                prompt = Example(prompt_id(row.messages), row.messages, None, name, name, "preference")
                prompt.licence, prompt.origin = row.licence or self.source.licence, row.origin
                prompts[prompt.id] = prompt
                answers = [candidate(prompt.id, answer, name) for answer in row.answers]
                earlier = self.judgements_by_prompt.setdefault(prompt.id, [])
                fresh = self.judgements(row, prompt.id, answers, {j.candidate_id for j in earlier})
                self.repeated += len(answers) - len(fresh) if row.graded else 0
                scores.extend(row.scores or [] if row.graded else [])
                earlier += fresh
                yield from {c.candidate_id: c for c in answers if c.candidate_id not in seen_ids}.values()
                seen_ids.update(c.candidate_id for c in answers)

        file = self.out / SCRATCH / "candidates.parquet"
        file.parent.mkdir(exist_ok=True)
        save(file, candidates(), Candidate)
        low, high = min(scores, default=0.0), max(scores, default=0.0)
        for j in chain.from_iterable(self.judgements_by_prompt.values()):
            if j.score is not None:  # of scores that are all the same one nobody knows the scale
                j.score = (j.score - low) / (high - low) if high > low else min(max(j.score, 0.0), 1.0)
        if self.repeated:
            report.notes.append(f"{self.repeated} answers are judged more than once, and the first judgement counts")
        unused = {self.source.path: [*report.unused_columns]}
        return Pool([*prompts.values()], Records(file, Candidate), report.bad_rows, unused, report.notes, report.rows)

    def judgements(
        self, row: ParsedRow, prompt: str, candidates: list[Candidate], judged_ids: set[str | None]
    ) -> list[Judgement]:
        """What a row says: which of two is better, or how good each is but for those `known`, on the file's scale."""
        scores = row.scores or []
        if row.graded:
            new_scores = {
                c.candidate_id: s for c, s in zip(candidates, scores, strict=True) if c.candidate_id not in judged_ids
            }
            return [Judgement(prompt, self.name, c, score) for c, score in new_scores.items()]
        a, b = candidates
        better = "tie" if scores[0] == scores[1] else "ab"[scores[0] < scores[1]]
        return [Judgement(prompt, self.name, a=a.candidate_id, b=b.candidate_id, preference=better)]

    def figures(self) -> dict[str, int]:
        return {"judged_again": self.repeated}

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.judgements_by_prompt[prompt.id]


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate.of_text(prompt, text, name, "dataset", len(text.split()))  # words: no tokenizer is known here
