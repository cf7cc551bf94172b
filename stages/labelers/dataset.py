"""`label=dataset`: an existing preference set, turned into a judged pool of two candidates per prompt."""

from stages.config.schema import Label, Source
from stages.formats.files import BadRow, Row, rows
from stages.formats.preferences import preference
from stages.store.records import Candidate, Example, Judgement, content_id, prompt_id


def read(cfg: Label) -> tuple[list[Example], list[Candidate], list[Judgement], list[Row]]:
    """Prompts, their candidates, a preference per row, and the rows that cannot be used."""
    assert cfg.path is not None
    name = cfg.path.rsplit("/", 1)[-1]
    prompts: dict[str, Example] = {}
    candidates: dict[str, Candidate] = {}
    judgements: list[Judgement] = []
    bad: list[Row] = []
    for row in rows(Source(cfg.path, cfg.revision, cfg.hub_split), "label.path"):
        try:
            if row.error:
                raise row.error
            messages, chosen, rejected = preference(row.value)
        except BadRow as reason:
            row.error = reason
            bad.append(row)
            continue
        prompt = Example(prompt_id(messages), messages, None, name, name, "preference")
        a, b = candidate(prompt.id, chosen, name), candidate(prompt.id, rejected, name)
        prompts[prompt.id] = prompt
        candidates |= {a.candidate_id: a, b.candidate_id: b}
        judgements.append(Judgement(prompt.id, "dataset", a=a.candidate_id, b=b.candidate_id, preference="a"))
    return list(prompts.values()), list(candidates.values()), judgements, bad


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate(
        prompt_id=prompt,
        candidate_id=content_id(prompt, text),
        policy=name,
        sampler="dataset",
        temperature=0.0,
        seed=0,
        text=text,
        token_ids=[],
        finish_reason="stop",
        logprob=float("nan"),
        n_tokens=len(text.split()),  # words: no tokenizer is known here
    )
