"""Sampling by OpenVINO's engine, the fastest in fp32 on a CPU (`pip install -e '.[openvino]'`).

It reads the GGUF file that `stage=export` writes, its weights in 16 bits, and each prompt once for all candidates. Its
random numbers are its own, so that it draws other candidates than `hf`; they too depend on the prompt and the seed
alone. Greedy tokens are those of `hf`, but for near ties.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.config.choices import GGUFType, Precision
from stages.models import gguf_file
from stages.samplers.sampler import Completion, Decoding, Request, Sampler

PROMPTS = 512  # tokens of prompts that are read along with a step
NO_LIMIT = 10**9  # the engine draws from the 50 most likely tokens where it is told nothing


class OpenVINOSampler(Sampler):
    """Completes prompts with a pipeline of `openvino_genai`, `rows` candidates at a time."""

    name = "openvino"

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "OpenVINOSampler":
        """Of the model in a folder, on the CPU.

        Raises:
            UserError: for a model that cannot be written as GGUF.
        """
        import openvino_genai

        rows = decoding.runtime.batch_size
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = rows, rows + PROMPTS
        arithmetic = "bf16" if decoding.precision is Precision.bf16 else "f32"
        options = {"INFERENCE_PRECISION_HINT": arithmetic, "KV_CACHE_PRECISION": arithmetic}
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            gguf_file.write(source, file, GGUFType.f16, source.parent.name)
            return cls(openvino_genai.ContinuousBatchingPipeline(file, scheduler, "CPU", options), stop_ids, decoding)

    def __init__(self, pipeline: Any, stop_ids: list[int], decoding: Decoding):
        self.pipeline, self.stops, self.decoding = pipeline, stop_ids, decoding

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Every request with all its completions, in the order in which they are finished."""
        from openvino import Tensor
        from openvino_genai import GenerationStatus

        waiting: list[tuple[Request, list[tuple[list[int], Any]]]] = []
        numbers = count()
        for request in requests:
            asked = []
            for candidates in alike(request):
                ids, config = Tensor(np.array([request.token_ids])), self.config(request, candidates)
                asked.append((candidates, self.pipeline.add_request(next(numbers), ids, config)))
            waiting.append((request, asked))
        while waiting:
            self.pipeline.step()
            left = []
            for request, asked in waiting:
                if any(handle.get_status() != GenerationStatus.FINISHED for _, handle in asked):
                    left.append((request, asked))
                    continue
                found = {i: c for indices, handle in asked for i, c in zip(indices, read(handle), strict=True)}
                yield request, [found[i] for i in range(len(found))]
            waiting = left

    def config(self, request: Request, candidates: list[int]) -> Any:
        """How these candidates of a request, which have one temperature, are drawn."""
        from openvino_genai import GenerationConfig

        temperature = request.temperatures[candidates[0]]
        drawn = {"do_sample": True, "temperature": temperature, "top_p": self.decoding.top_p, "top_k": NO_LIMIT}
        return GenerationConfig(
            max_new_tokens=self.decoding.max_new_tokens,
            stop_token_ids=set(self.stops),
            ignore_eos=not self.stops,  # else the model's own end ends an answer
            num_return_sequences=len(candidates),
            logprobs=1,
            rng_seed=request.seed_of(candidates[0]),
            **(drawn if temperature > 0 else {}),
        )


def alike(request: Request) -> list[list[int]]:
    """The request's candidates that are drawn together: those of one temperature, the greedy ones each by itself."""
    groups = defaultdict[tuple[float, int], list[int]](list)
    for i, temperature in enumerate(request.temperatures):
        groups[temperature, i if temperature == 0 else 0].append(i)
    return [*groups.values()]


def read(handle: Any) -> list[Completion]:
    """What came of a finished request."""
    outputs = handle.read_all()
    return [Completion(o.generated_ids, o.finish_reason.name.lower(), sum(o.generated_log_probs)) for o in outputs]
