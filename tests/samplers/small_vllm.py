"""An engine with vLLM's interface in a few lines. The real driver runs on it, for tests without vLLM.

SMALL_VLLM in the environment is JSON: `fault` happens before the engine finishes its sixth completion, `version` and
`device` are the engine's, and `pids` is a file to which every engine adds its process id."""

import json
import os
import random
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

SETTINGS: dict[str, str] = json.loads(os.environ.get("SMALL_VLLM", "{}"))
REAL_STDOUT = os.dup(1)  # the driver hides it from its libraries


class Engine:
    """An engine that finishes the newest request first, with tokens that depend on its seed alone."""

    def __init__(self) -> None:
        self.waiting, self.finished = list[tuple[str, SimpleNamespace]](), 0

    def add_request(self, name: str, prompt: dict[str, Any], params: SimpleNamespace) -> None:
        if len(prompt["prompt_token_ids"]) > 10_000:
            raise ValueError("the prompt is too long")
        self.waiting.append((name, params))

    def step(self) -> list[SimpleNamespace]:
        name, params = self.waiting.pop()
        self.finished += 1
        if self.finished == 6:
            misbehave()
        draw = random.Random(params.seed if params.temperature else name)
        plain = [token for token in range(5, 200) if token not in params.stop_token_ids]
        ids = [*draw.choices(plain, k=3), params.stop_token_ids[0]]
        logprobs = [{token: SimpleNamespace(logprob=-0.5)} for token in ids]
        return [
            SimpleNamespace(
                finished=True,
                request_id=name,
                outputs=[SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=logprobs)],
            )
        ]


def misbehave() -> None:
    fault = SETTINGS.get("fault")
    if fault == "dies":
        os.write(2, b"Segmentation fault\n")
        os._exit(139)
    if fault == "raises":
        raise MemoryError("CUDA out of memory")
    if fault == "hangs":
        time.sleep(600)
    if fault == "garbage":
        os.write(REAL_STDOUT, b"hello\n")
    if fault == "answers no request":
        os.write(REAL_STDOUT, b'{"id": "none", "completions": []}\n')


def main() -> None:
    if "-c" in sys.argv:
        sys.stdout.write("True")  # vllm is installed
        return
    if "pids" in SETTINGS:
        with open(SETTINGS["pids"], "a", encoding="utf-8") as pids:
            pids.write(f"{os.getpid()}\n")
    for name in ("vllm", "vllm.platforms", "torch", "transformers"):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name])["__version__"] = SETTINGS.get("version", "0.0.1")
    platform = SimpleNamespace(is_cpu=lambda: True, device_type=SETTINGS.get("device", "cpu"))
    vars(sys.modules["vllm.platforms"])["current_platform"] = platform
    classes = {"LLM": lambda **options: SimpleNamespace(llm_engine=Engine()), "TokensPrompt": dict}
    vars(sys.modules["vllm"]).update(
        classes, SamplingParams=lambda **options: SimpleNamespace(**{"seed": 0} | options)
    )
    runpy.run_path(str(Path(sys.argv[-1])), run_name="__main__")


if __name__ == "__main__":
    main()
