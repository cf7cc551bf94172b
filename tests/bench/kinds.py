"""Measure how often the base model keeps each kind of constraint: `python -m tests.bench.kinds [KEY=VALUE …]`.

Every kind, alone, on `prompts` open requests of a seed of its own, answered greedily; a prompt counts where all its
checks pass, the topic among them. By these rates alone test kinds are admitted: between 5 and 80%. Writes the rates
and the answers to outputs/bench/.
"""

import json
import logging
import random
from collections import defaultdict
from dataclasses import dataclass

from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision
from stages.hardware import allocator
from stages.models.contract import load_or_derive_contract
from stages.samplers.completions import complete
from stages.samplers.sampler import Decoding
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example
from stages.store.workspace import StageDir
from stages.tasks.checks import share_passed
from stages.tasks.constraint import known_constraints
from stages.tasks.open_requests import example, request
from tests.bench import arms
from tests.helpers import ROOT

ADMITTED = 0.05, 0.8
FOLDER = ROOT / "outputs" / "bench" / "kinds"


@dataclass
class Settings:
    """`model`: a model's folder. `temperature`: 0 is greedy. `side`: only kinds of this one; empty: all."""

    model: str = "outputs/latest/base/model"
    prompts: int = 40
    max_new_tokens: int = 128
    temperature: float = 0.0
    precision: str = "bf16"
    side: str = "test"
    seed: int = 20261114


def main(cfg: Settings) -> None:
    kinds = [kind for kind in known_constraints().values() if cfg.side in ("", kind.side)]
    prompt_by_id: dict[str, tuple[str, Example]] = {}
    for kind in kinds:
        for i in range(cfg.prompts):
            rng = random.Random(f"{cfg.seed}/{kind.name}/{i}")
            prompt = example("open_validation", request(rng), [kind], rng)
            prompt_by_id[prompt.id] = kind.name, prompt
    FOLDER.mkdir(parents=True, exist_ok=True)
    runtime = InferenceRuntime("auto", 512, 100_000)
    decoding = Decoding(
        [cfg.temperature], cfg.max_new_tokens, Precision(cfg.precision), runtime, seed=cfg.seed
    )
    model = ROOT / cfg.model
    with allocator.keep_freed_memory():
        prompts = [e for _, e in prompt_by_id.values()]
        work = StageDir(FOLDER, lambda metrics, step: None)
        answers = complete(
            prompts,
            load_or_derive_contract(model),
            model,
            decoding,
            "kinds",
            work,
            Dropped(work, "prompts"),
        )
    answers_by_kind = defaultdict[str, list[tuple[Example, Candidate, bool]]](list)
    for answer in answers:
        name, e = prompt_by_id[answer.prompt_id]
        answers_by_kind[name].append((e, answer, share_passed(e.checks, answer.text) == 1))
    rows = []
    for kind in sorted(kinds, key=lambda k: (k.side, k.area, k.name)):
        of_kind = answers_by_kind[kind.name]
        rate = sum(passed for _, _, passed in of_kind) / len(of_kind)
        ended = sum(answer.finish_reason == "stop" for _, answer, _ in of_kind) / len(of_kind)
        word = "" if ADMITTED[0] <= rate <= ADMITTED[1] else "outside"
        rows.append(
            {"kind": kind.name, "side": kind.side, "area": kind.area, "rate": rate, "ended": ended}
        )
        logging.info(
            "%-10s %-12s %-24s %5.1f%% %4.0f%% end %s",
            kind.side,
            kind.area,
            kind.name,
            100 * rate,
            100 * ended,
            word,
        )
    lines = [
        {
            "kind": name,
            "prompt": e.messages[-1]["content"],
            "answer": a.text,
            "passed": passed,
            "tokens": a.n_tokens,
        }
        for name, kind_answers in answers_by_kind.items()
        for e, a, passed in kind_answers
    ]
    (FOLDER / "rates.json").write_text(json.dumps(rows, indent=1))
    (FOLDER / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


if __name__ == "__main__":
    arms.run(Settings, main, lambda cfg: {})
