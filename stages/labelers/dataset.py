"""`label=dataset`: an existing preference set, turned into a judged pool of two candidates per prompt."""

from collections.abc import Iterable
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.labels import Label
from stages.formats.format import Said
from stages.formats.layout import Wanted
from stages.formats.sources import Found, convert
from stages.labelers.labeler import Labeler, Pool
from stages.store.records import Candidate, Example, Judgement, prompt_id
from stages.store.work import Work


class Dataset(Labeler):
    """Judges nothing: the file says which answer is better, or how good each is, and brings them."""

    name = "dataset"

    def __init__(self, source: Source, key: str):
        self.source, self.key, self.given = source, key, dict[str, list[Judgement]]()

    @classmethod
    def of(cls, cfg: Label, out: Work) -> "Dataset":
        return cls(cfg.source, cfg.key)

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The file's prompts and their candidates, and the rows that cannot be used."""
        name = self.source.path.rsplit("/", 1)[-1]
        prompts: dict[str, Example] = {}
        candidates: dict[str, Candidate] = {}
        found = Found()
        rows = list(convert(self.source, self.key, lambda said: said, Wanted.preferences, found))
        low, high = extremes(rows)
        seen, again = set[str](), 0
        for said in rows:
            prompt = Example(prompt_id(said.messages), said.messages, None, name, name, "preference")
            prompt.licence, prompt.origin = said.licence or self.source.licence, said.origin
            those = [candidate(prompt.id, answer, name) for answer in said.answers]
            prompts[prompt.id] = prompt
            candidates |= {c.candidate_id: c for c in those}
            scores, given = said.scores or [], self.given.setdefault(prompt.id, [])
            if said.graded:
                fresh = {c.candidate_id: s for c, s in zip(those, scores, strict=True) if c.candidate_id not in seen}
                given += [Judgement(prompt.id, self.name, c, (s - low) / (high - low)) for c, s in fresh.items()]
                seen |= {*fresh}
                again += len(those) - len(fresh)
            else:
                a, b = those
                better = "tie" if scores[0] == scores[1] else "ab"[scores[0] < scores[1]]
                given.append(Judgement(prompt.id, self.name, a=a.candidate_id, b=b.candidate_id, preference=better))
        if again:
            found.told.append(f"{again} answers are judged more than once, and the first judgement counts")
        unused = {self.source.path: [*found.unused]}
        return Pool([*prompts.values()], [*candidates.values()], found.bad, unused, found.told)

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.given[prompt.id]


def extremes(said: list[Said]) -> tuple[float, float]:
    """The lowest and the highest score of a source, which become 0 and 1."""
    scores = [score for row in said if row.graded for score in row.scores or []] or [0.0]
    low, high = min(scores), max(scores)
    return low, high if high > low else low + 1


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate.of_text(prompt, text, name, "dataset", len(text.split()))  # words: no tokenizer is known here
