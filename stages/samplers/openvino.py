"""Sampling by OpenVINO's engine, the fastest sampler in fp32 on a CPU (`pip install -e '.[openvino]'`). It reads the
GGUF file of `stage=export` with 16-bit weights, and each prompt once for all candidates. Its random numbers differ
from those of `hf`, but also depend on prompt and seed alone. Greedy tokens are the same, except for near ties."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.config.choices import GGUFType, Precision
from stages.models import gguf_file
from stages.samplers.sampler import Completion, Decoding, Request, Sampler

PROMPTS = 512  # tokens of prompts that are read in one decoding step
NO_LIMIT = 10**9  # for top_k, because the engine's default is the 50 most likely tokens


class OpenVINOSampler(Sampler):
    """A sampler with a pipeline of `openvino_genai` that decodes `rows` candidates at once."""

    name = "openvino"

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "OpenVINOSampler":
        """Return a sampler of the model in a folder, on the CPU.
        Raise UserError for a model that cannot be written as GGUF."""
        import openvino_genai

        rows = decoding.runtime.batch_size
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_seqs, scheduler.max_num_batched_tokens = rows, rows + PROMPTS
        arithmetic = "bf16" if decoding.precision is Precision.bf16 else "f32"
        options = {"INFERENCE_PRECISION_HINT": arithmetic, "KV_CACHE_PRECISION": arithmetic}
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model.gguf"
            gguf_file.write_gguf(source, file, GGUFType.f16, source.parent.name)
            return cls(openvino_genai.ContinuousBatchingPipeline(file, scheduler, "CPU", options), stop_ids, decoding)

    def __init__(self, pipeline: Any, stop_ids: list[int], decoding: Decoding):
        self.pipeline, self.stops, self.decoding = pipeline, stop_ids, decoding

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[Request, list[Completion]]]:
        """Yield every request with all its completions, in the order of completion."""
        from openvino import Tensor
        from openvino_genai import GenerationStatus

        waiting: list[tuple[Request, list[tuple[list[int], Any]]]] = []
        numbers = count()
        for request in requests:
            handles = []
            for candidates in group_candidates(request):
                ids, config = Tensor(np.array([request.token_ids])), self.config(request, candidates)
                handles.append((candidates, self.pipeline.add_request(next(numbers), ids, config)))
            waiting.append((request, handles))
        while waiting:
            self.pipeline.step()
            unfinished = []
            for request, handles in waiting:
                if any(handle.get_status() != GenerationStatus.FINISHED for _, handle in handles):
                    unfinished.append((request, handles))
                    continue
                pairs = (zip(indices, read_completions(handle), strict=True) for indices, handle in handles)
                completions = dict(chain.from_iterable(pairs))
                yield request, [completions[i] for i in range(len(completions))]
            waiting = unfinished

    def config(self, request: Request, candidates: list[int]) -> Any:
        """Return the settings to draw candidates of a request that have the same temperature."""
        from openvino_genai import GenerationConfig

        temperature = request.temperatures[candidates[0]]
        drawn = {"do_sample": True, "temperature": temperature, "top_p": self.decoding.top_p, "top_k": NO_LIMIT}
        return GenerationConfig(
            max_new_tokens=self.decoding.max_new_tokens,
            stop_token_ids=set(self.stops),
            ignore_eos=not self.stops,  # without stop_ids, the model's end-of-text token would end answers
            num_return_sequences=len(candidates),
            logprobs=1,
            rng_seed=request.seed_of(candidates[0]),
            **(drawn if temperature > 0 else {}),
        )


def group_candidates(request: Request) -> list[list[int]]:
    """Return indices of candidates that are drawn together: a group per temperature and per greedy candidate."""
    groups = defaultdict[tuple[float, int], list[int]](list)
    for i, temperature in enumerate(request.temperatures):
        groups[temperature, i if temperature == 0 else 0].append(i)
    return [*groups.values()]


def read_completions(handle: Any) -> list[Completion]:
    """Return the completions of a finished request."""
    outputs = handle.read_all()
    return [Completion(o.generated_ids, o.finish_reason.name.lower(), sum(o.generated_log_probs)) for o in outputs]
