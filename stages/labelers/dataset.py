"""`label=dataset`: an existing preference set, turned into a judged pool of two candidates per prompt."""

from collections.abc import Iterable
from pathlib import Path

from stages.config.schema import Label, Source
from stages.formats.preferences import preference, unused_beside
from stages.formats.sources import convert
from stages.labelers.labeler import Labeler, Pool
from stages.store.records import Candidate, Example, Judgement, content_id, prompt_id
from stages.store.work import Work


class Dataset(Labeler):
    """Judges nothing: the file says which of two is better, and brings both."""

    name = "dataset"

    def __init__(self, source: Source):
        self.source, self.preferred = source, dict[str, list[Judgement]]()

    @classmethod
    def of(cls, cfg: Label, out: Work) -> "Dataset":
        return cls(Source(str(cfg.path), cfg.revision, cfg.hub_split))

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """The file's prompts and their candidates, and the rows that cannot be used."""
        name = self.source.path.rsplit("/", 1)[-1]
        prompts: dict[str, Example] = {}
        candidates: dict[str, Candidate] = {}
        found = convert(self.source, "label.path", preference, unused_beside, "Drop the column.")
        for messages, chosen, rejected in found.made:
            prompt = Example(prompt_id(messages), messages, None, name, name, "preference")
            a, b = candidate(prompt.id, chosen, name), candidate(prompt.id, rejected, name)
            prompts[prompt.id] = prompt
            candidates |= {a.candidate_id: a, b.candidate_id: b}
            better = Judgement(prompt.id, self.name, a=a.candidate_id, b=b.candidate_id, preference="a")
            self.preferred.setdefault(prompt.id, []).append(better)
        return Pool([*prompts.values()], [*candidates.values()], found.bad, {self.source.path: found.unused})

    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        return self.preferred[prompt.id]


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate(
        prompt_id=prompt,
        candidate_id=content_id(prompt, text),
        policy=name,
        sampler="dataset",
        temperature=0.0,
        seed=0,
        text=text,
        token_ids=None,
        finish_reason="stop",
        logprob=None,
        n_tokens=len(text.split()),  # words: no tokenizer is known here
    )
