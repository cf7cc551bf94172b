"""An engine with vLLM's interface in a few lines. The real driver runs on it, for tests without vLLM.

SMALL_VLLM in the environment is JSON: `fault` happens before the engine finishes its completion `at` (the sixth), or when it
gets weights, `version` and `device` are the engine's, and `pids` is a file to which every engine adds its process id. With
`model` the engine has the model of the job's folder, in fp32."""

import json
import os
import random
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SETTINGS: dict[str, Any] = json.loads(os.environ.get("SMALL_VLLM", "{}"))
HEADS = "vllm.model_executor.layers.vocab_parallel_embedding"
REAL_STDOUT = os.dup(1)  # the driver hides it from its libraries


class Engine:
    """An engine that finishes the newest request first, with tokens that depend on its seed alone."""

    def __init__(self) -> None:
        self.waiting, self.finished = list[tuple[str, list[int], SimpleNamespace]](), 0

    def add_request(self, name: str, prompt: dict[str, Any], params: SimpleNamespace) -> None:
        if len(prompt["prompt_token_ids"]) > 10_000:
            raise ValueError("the prompt is too long")
        self.waiting.append((name, prompt["prompt_token_ids"], params))

    def step(self) -> list[SimpleNamespace]:
        name, prompt, params = self.waiting.pop()
        self.finished += 1
        if self.finished == SETTINGS.get("at", 6):
            misbehave()
        ids, logprobs = self.draw(name, prompt, params)
        output = SimpleNamespace(
            token_ids=ids,
            finish_reason="stop" if ids[-1] in params.stop_token_ids else "length",
            logprobs=[
                {token: SimpleNamespace(logprob=logprob)}
                for token, logprob in zip(ids, logprobs, strict=True)
            ],
        )
        return [SimpleNamespace(finished=True, request_id=name, outputs=[output])]

    def draw(
        self, name: str, prompt: list[int], params: SimpleNamespace
    ) -> tuple[list[int], list[float]]:
        draw = random.Random(params.seed if params.temperature else name)
        plain = [token for token in range(5, 200) if token not in params.stop_token_ids]
        return [*draw.choices(plain, k=3), params.stop_token_ids[0]], [-0.5] * 4


class ModelEngine(Engine):
    """An engine that computes the model of a folder, with log-probs at the temperature of the draw."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder)

    def draw(
        self, name: str, prompt: list[int], params: SimpleNamespace
    ) -> tuple[list[int], list[float]]:
        import torch

        ids, logprobs = list[int](), list[float]()
        generator = torch.Generator().manual_seed(params.seed)
        while len(ids) < params.max_tokens and not {*ids}.intersection(params.stop_token_ids):
            with torch.no_grad():
                scores = self.model(torch.tensor([prompt + ids])).logits[0, -1]
            scores = (scores / (params.temperature or 1)).log_softmax(-1)
            drawn = torch.multinomial(scores.exp(), 1, generator=generator)
            token = int(drawn if params.temperature else scores.argmax())
            ids.append(token)
            logprobs.append(float(scores[token]))
        return ids, logprobs

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        weights = dict(kwargs["weights_iterator"])
        if SETTINGS.get("fault") == "mangles a weight":
            weights["model.norm.weight"] *= 1.5
        if SETTINGS.get("fault") != "keeps its weights":
            self.model.load_state_dict(weights, strict=False)  # the output layer is the embedding

    def apply_model(self, function: Callable[[Any], None]) -> None:
        function(self.model)

    def reset_prefix_cache(self) -> None:
        """Do nothing: it has no cache."""


def misbehave() -> None:
    fault = SETTINGS.get("fault")
    if fault == "dies":
        os.write(2, b"Segmentation fault\n")
        os._exit(139)
    if fault == "hangs":
        time.sleep(600)
    if fault == "garbage":
        os.write(REAL_STDOUT, b"hello\n")


def main() -> None:
    if "-c" in sys.argv:
        sys.stdout.write("True")  # vllm is installed
        return
    if "pids" in SETTINGS:
        with open(SETTINGS["pids"], "a", encoding="utf-8") as pids:
            pids.write(f"{os.getpid()}\n")
    has_model = bool(SETTINGS.get("model"))
    for name in (
        "vllm",
        "vllm.platforms",
        HEADS,
        *(() if has_model else ("torch", "transformers")),
    ):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name])["__version__"] = SETTINGS.get("version", "0.0.1")
    vars(sys.modules[HEADS])["ParallelLMHead"] = type("ParallelLMHead", (), {})
    platform = SimpleNamespace(is_cpu=lambda: True, device_type=SETTINGS.get("device", "cpu"))
    vars(sys.modules["vllm.platforms"])["current_platform"] = platform

    def start(model: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(llm_engine=ModelEngine(model) if has_model else Engine())

    classes = {"LLM": start, "TokensPrompt": dict}
    vars(sys.modules["vllm"]).update(
        classes, SamplingParams=lambda **options: SimpleNamespace(**{"seed": 0} | options)
    )
    runpy.run_path(str(Path(sys.argv[-1])), run_name="__main__")


if __name__ == "__main__":
    main()
