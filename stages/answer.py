"""Stage `answer`: one model answers the held-out prompts, greedily. A node per model, so sweeps share."""

import json
from pathlib import Path
from typing import Any

from stages import contract
from stages.completions import Decoding, complete
from stages.config import Answer
from stages.contract import Contract
from stages.errors import UserError
from stages.models import device_of, load_tokenizer
from stages.records import Candidate, Example, Message, load, save
from stages.store import Work


def run(cfg: Answer, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `answers.parquet`, one per prompt of the split that has checks.

    Raises:
        UserError: where there is no such prompt.
    """
    examples = load(inputs["data"] / "examples.parquet", Example)
    prompts = [e for e in examples if e.split == cfg.split and e.checks]
    if not prompts:
        raise UserError(f"the data holds no {cfg.split} prompts with checks, so nothing can be evaluated on them.")
    model = inputs["model"] / "model"
    terms = contract.load(model) if (model / "contract.json").exists() else own_form(model)
    decoding = Decoding([0.0], cfg.max_new_tokens, cfg.precision, cfg.runtime)
    answers = complete(prompts, terms, model, decoding, "answer", out)
    save(out / "answers.parquet", answers, Candidate)
    tokens = sum(a.n_tokens for a in answers)
    stopped = sum(a.finish_reason == "stop" for a in answers) / len(answers)
    return {
        "device": str(device_of(cfg.runtime.device)),
        "prompts": len(prompts),
        "tokens": tokens,
        "stop_rate": stopped,
        "form": type(terms).__name__,
        "summary": f"{len(prompts)} prompts answered, {tokens / len(prompts):.1f} tokens each, {stopped:.1%} ended",
    }


class Continuation(Contract):
    """How a base that knows no chat is asked: as text to be continued, up to the first blank line."""

    def prompt(self, messages: list[Message]) -> list[int]:
        names = {"system": "Instruction", "user": "Question", "assistant": "Answer"}
        text = "\n\n".join(f"{names[m['role']]}: {m['content']}" for m in messages)
        return self.tokenizer(f"{text}\n\nAnswer:").input_ids  # type: ignore[no-any-return]

    def text(self, ids: list[int]) -> str:
        return super().text(ids).split("\n\n")[0]


def own_form(model: Path) -> Contract:
    """A base model's own chat template where it has one, else text to continue: not tokens it never saw."""
    tokenizer = load_tokenizer(model)
    generation = model / "generation_config.json"
    stops = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else None
    stop_ids = [i for i in {tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])} if i is not None]
    return (Contract if tokenizer.chat_template else Continuation)(tokenizer, stop_ids)
