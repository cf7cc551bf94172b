"""`label=dataset`: an existing preference set, turned into a judged pool of two candidates per prompt."""

from typing import Any

from stages.config.schema import Label, Source
from stages.data import sources
from stages.data.sources import BadRow, Row
from stages.data.tasks import prompt_id
from stages.store.records import Candidate, Example, Judgement, Message, content_id


def read(cfg: Label) -> tuple[list[Example], list[Candidate], list[Judgement], list[Row]]:
    """Prompts, their candidates, a preference per row, and the rows that cannot be used."""
    assert cfg.path is not None
    name = cfg.path.rsplit("/", 1)[-1]
    prompts: dict[str, Example] = {}
    candidates: dict[str, Candidate] = {}
    judgements: list[Judgement] = []
    bad: list[Row] = []
    for row in sources.rows(Source(cfg.path, cfg.revision, cfg.hub_split), "label.path"):
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


def preference(row: Any) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected: TRL's columns (prompt explicit or shared by both), ShareGPT's, or Alpaca's.

    Raises:
        BadRow: where a column is missing, or chosen and rejected do not answer the same prompt, or are the same.
    """
    if not isinstance(row, dict):
        raise BadRow("", f"a row must be an object, this is a {type(row).__name__}")
    for field in ("chosen", "rejected"):
        if field not in row:
            raise BadRow(field, f"the column is missing; there are {', '.join(map(str, row))}")
    answers = ("chosen", "rejected", "output", "completion", *(["messages"] if "prompt" in row else []))
    asked = {k: v for k, v in row.items() if k not in answers}
    if isinstance(row.get("prompt"), str) and all(isinstance(row[f], list) and row[f][1:] for f in answers[:2]):
        del asked["prompt"]  # whole conversations stand beside it: it repeats one of their turns
    if {"messages", "conversations", "instruction", "prompt"} & set(asked):
        prompt, answer = sources.conversation(asked)
        if answer is not None:
            raise BadRow("", "the prompt ends with an assistant turn")
        chosen, rejected = (completion(row[field], field, prompt) for field in ("chosen", "rejected"))
    else:
        prompt, chosen = whole(row["chosen"], "chosen")
        other, rejected = whole(row["rejected"], "rejected")
        if prompt != other:
            raise BadRow("rejected", "answers another prompt than chosen")
    if chosen == rejected:
        raise BadRow("rejected", "is the same as chosen")
    return prompt, chosen, rejected


def completion(value: Any, field: str, prompt: list[Message]) -> str:
    """The answer in a string, a message, or a list of messages that may repeat the prompt."""
    if isinstance(value, str):
        return sources.text(value, field)
    turns = [sources.message(turn, field) for turn in (value if isinstance(value, list) else [value])]
    if turns[:-1] not in ([], prompt) or turns[-1]["role"] != "assistant":
        raise BadRow(field, "must be one assistant turn, alone or after the prompt")
    return turns[-1]["content"]


def whole(value: Any, field: str) -> tuple[list[Message], str]:
    """A whole conversation: its prompt and the assistant's last turn."""
    prompt, answer = sources.conversation({"messages": value})
    if answer is None:
        raise BadRow(field, "does not end with an assistant turn")
    return prompt, answer


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
