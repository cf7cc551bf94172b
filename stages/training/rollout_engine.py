"""vLLM as the sampler of rollouts: a child process beside the trainer, which gets the weights of every step."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.blocks.training import ScoredGRPO
from stages.config.errors import UserError
from stages.models.contract import Contract
from stages.models.loading import save_model
from stages.samplers.completions import validate_engine
from stages.samplers.sampler import Decoding
from stages.samplers.vllm import VLLMSampler
from stages.store.workspace import SCRATCH, StageDir

ROWS = 256  # completions that are decoded at once
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element


class RolloutEngine(AbstractContextManager["RolloutEngine"]):
    """vLLM in a child process from here to the end of the context. Its completions have log-probs at their own
    temperature. It starts with the weights in the folder `start`, and before it completes it needs `load`."""

    def __init__(self, cfg: ScoredGRPO, start: Path, contract: Contract, out: StageDir):
        """Raise UserError if the engine does not start, or another engine drew this node's earlier rollouts."""
        runtime = SamplingRuntime(
            device=cfg.runtime.device,
            batch_size=ROWS,
            shard_size=None,
            python=cfg.runtime.python,
            tensor_parallel=1,
        )
        decoding = Decoding([], cfg.max_new_tokens, cfg.precision, runtime, block=cfg.block)
        self.folder = out / SCRATCH / "weights"
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
        if bits != sum_bits(model):
            problem = "grpo.sampler=vllm: the engine read other weights than the trainer has"
            raise UserError(
                f"{problem}, so nothing is published. Type the same command again to resume."
            )
        return self.sampler


@torch.no_grad()
def sum_bits(model: PreTrainedModel) -> int:
    """Return the sum of the bits of all weights, each element read as an integer, modulo 2^64. Weights have the same
    sum when they are split or joined, as those of experts are in a file. They are summed up on the device."""
    weights = {weight.data_ptr(): weight for weight in model.state_dict().values()}  # tied: once
    sums = [
        weight.reshape(-1).view(INTEGERS[weight.itemsize]).sum(dtype=torch.int64)
        for weight in weights.values()
    ]
    return int(torch.stack(sums).sum()) % 2**64
