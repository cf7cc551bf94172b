"""Sampling by vLLM, whose engine is a child process under `sample.runtime.python`. Its draws depend on prompt and seed
alone, but its random numbers differ from those of `hf`. In fp32, greedy tokens are the same, except for near ties."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stages.config.errors import UserError
from stages.hardware import machine
from stages.hardware.piped_process import PipedProcess
from stages.samplers.sampler import Completion, Decoding, Request, Sampler

DRIVER = Path(__file__).with_name("vllm_driver.py")
PATIENCE = 1800.0  # seconds for loading a model, or from one finished request to the next
# GiB; a user may set others
DEFAULTS = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "WARNING"}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # the engine runs in the child itself, and listens on nothing
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",  # for tensor parallelism
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would hold the child's pipes open
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class VLLMSampler(Sampler):
    """A sampler with a child process that holds the model."""

    name = "vllm"
    engine: dict[str, str]

    @classmethod
    def open(
        cls, source: Path, stop_ids: list[int], decoding: Decoding, **options: Any
    ) -> "VLLMSampler":
        """Return a sampler of the model in a folder, when its engine has started. `options`: further ones of the engine.
        Raise UserError if it does not start, or computes on another device than the one in `runtime`."""
        machine.give_back_gpu_memory()  # of an earlier training in this process
        return cls(source, stop_ids, decoding, **options)

    def __init__(self, source: Path, stop_ids: list[int], decoding: Decoding, **options: Any):
        runtime: Any = decoding.runtime
        self.key = decoding.runtime_key
        self.python = runtime.python
        descriptor, log = tempfile.mkstemp(prefix="vllm-", suffix=".log")
        os.close(descriptor)
        environment = DEFAULTS | os.environ | ENVIRONMENT
        self.child = PipedProcess(DRIVER, self.python, Path(log), environment, patience=PATIENCE)
        self.child.send(
            {
                "model": str(source.resolve()),
                "precision": str(decoding.precision),
                "batch_size": runtime.batch_size,
                "tensor_parallel": runtime.tensor_parallel,
                "top_p": decoding.top_p,
                "max_new_tokens": decoding.max_new_tokens,
                "stop_ids": stop_ids,
                "options": options,
            }
        )
        self.engine = self.read("vllm", "torch", "transformers", "device", "dtype")
        if runtime.device not in ("auto", self.engine["device"]):
            self.fail(
                f"it computes on {self.engine['device']}, but {self.key}.device={runtime.device}"
            )

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Yield every request with all its completions, in the order of completion."""
        requests_by_id = {request.id: request for request in requests}
        for request in requests:
            seeds = [request.seed_of(i) for i in range(len(request.temperatures))]
            draws = [*zip(request.temperatures, seeds, strict=True)]
            self.child.send({"id": request.id, "ids": request.token_ids, "draws": draws})
        while requests_by_id:
            message = self.read("id", "completions")
            completions = [Completion(*drawn) for drawn in message["completions"]]
            yield requests_by_id.pop(message["id"]), completions

    def load_weights(self, folder: Path) -> int:
        """Load the safetensors files of a folder into the running engine. Return the sum of their bits, as the engine
        read them."""
        self.child.send({"weights": str(folder.resolve())})
        return int(self.read("bits")["bits"])

    def read(self, *keys: str) -> dict[str, Any]:
        """Return the child's next message, which must have these keys."""
        message = self.child.read() or {"error": "it ended before its last answer"}
        if not message.keys() >= {*keys}:
            self.fail(
                message.get("error", f"it sent {str(message)[:80]} without {', '.join(keys)}")
            )
        return message

    def fail(self, reason: str) -> NoReturn:
        self.child.close()
        raise UserError(
            f"{self.key}.python={self.python or 'null'}: vLLM failed: {reason[:600]}. "
            f"Type the same command again to resume. Its log: {self.child.log}."
        )

    def close(self) -> None:
        """End the child, so that its memory is free. The log of a child that failed stays."""
        is_running = self.child.process.poll() is None
        self.child.close()
        if is_running:
            self.child.log.unlink(missing_ok=True)
