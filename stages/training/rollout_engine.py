"""vLLM as the sampler of rollouts: a child process beside the trainer, which gets the weights of every step."""

import shutil
from contextlib import AbstractContextManager
from math import gcd
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.config.blocks.draws import Drawing
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.errors import UserError
from stages.hardware.memory import ROLLOUT_ROWS
from stages.models.contract import Contract
from stages.models.loading import save_model
from stages.samplers.completions import validate_engine
from stages.samplers.sampler import Decoding
from stages.samplers.vllm import VLLMSampler
from stages.store.workspace import SCRATCH, StageDir

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes


class RolloutEngine(AbstractContextManager["RolloutEngine"]):
    """vLLM in a child process from here to the end of the context. Its completions have log-probs at their own
    temperature. It starts with the weights in the folder `start`, and before it completes it needs `load`."""

    def __init__(self, cfg: Drawing, start: Path, contract: Contract, out: StageDir):
        """Raise UserError if the engine does not start, or another engine drew this node's earlier rollouts."""
        runtime = SamplingRuntime(
            device=cfg.runtime.device,
            batch_size=ROLLOUT_ROWS,
            shard_size=None,
            python=cfg.runtime.python,
            tensor_parallel=1,
        )
        decoding = Decoding([], cfg.max_new_tokens, cfg.precision, runtime, block=cfg.block)
        self.folder = out / SCRATCH / "weights"
        self.key = f"{cfg.block}.sampler=vllm"
        self.sampler = VLLMSampler.open(
            start,
            contract.stop_ids,
            decoding,
            gpu_memory_utilization=cfg.runtime.engine_memory,
            logprobs_mode="processed_logprobs",  # at the temperature of the draw, as the trainer's
        )
        try:
            validate_engine(self.sampler.engine, f"{decoding.runtime_key}.python", out)
        except UserError:
            self.sampler.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.sampler.close()

    def load(self, model: PreTrainedModel) -> VLLMSampler:
        """Return the sampler with the weights of this model, which go through a file.
        Raise UserError if the engine read other bits than the model has."""
        try:
            save_model(model, self.folder)
            bits = self.sampler.load_weights(self.folder)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        if bits != sum_weights(model):
            problem = f"{self.key}: the engine read other weights than the trainer has"
            raise UserError(
                f"{problem}, so nothing is published. Type the same command again to resume."
            )
        return self.sampler


@torch.no_grad()
def sum_weights(model: PreTrainedModel) -> int:
    """Return the sum of the bits of all weights, modulo 2^64. It is the same when weights are split or joined, as those
    of experts are in a file."""
    weights = {weight.data_ptr(): weight for weight in model.state_dict().values()}  # tied: once
    return int(torch.stack([*map(sum_bits, weights.values())]).sum()) % 2**64


def sum_bits(weight: torch.Tensor, widest: bool = False) -> torch.Tensor:
    """Return the sum of a weight's elements, each read as an integer, modulo 2^64, as a tensor on its device. `widest`:
    several elements are read as one integer of up to 8 bytes."""
    values = weight.reshape(-1)
    offset = values.storage_offset() * values.itemsize
    size = gcd(8, values.nbytes, offset) if widest else values.itemsize
    return values.view(INTEGERS[size]).sum(dtype=torch.int64)
