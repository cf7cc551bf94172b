"""Blocks `runtime`: devices, sizes of micro-batches, checkpoints. They change no result and no fingerprint."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import DEVICES, Checkpointing, Sharding
from stages.config.limits import Limit, at_least, limited, positive, words


@dataclass
class Processes:
    """The processes that work on a stage, on each of several nodes."""

    processes: int = at_least(1, 1)
    nodes: int = at_least(1, 1)

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes


@dataclass
class TrainRuntime(Processes):
    """Devices, memory and checkpoints of a training stage. They do not change the result: an optimizer step always has
    `batch_size` rows, in micro-batches of any size."""

    device: str = words(*DEVICES)
    sharding: Sharding = MISSING
    micro_batch: int | str = at_least(1)
    token_budget: int | None = at_least(1)
    gradient_checkpointing: Checkpointing = MISSING
    loader_workers: int = MISSING
    save_steps: int = at_least(1)
    save_minutes: float = positive()

    @property
    def rows(self) -> int | None:
        """The number of rows in a micro-batch; None for auto."""
        return None if self.micro_batch == "auto" else int(self.micro_batch)


@dataclass
class SampledRuntime(TrainRuntime):
    """Devices, memory and checkpoints of a training stage, and the sample answers during training. They do not change
    the result: an optimizer step always has `batch_size` rows, in micro-batches of any size."""

    samples: int = MISSING
    sample_tokens: int = at_least(1)


@dataclass
class RolloutRuntime(SampledRuntime):
    """As `sft.runtime`, with the Python and GPU memory of vLLM."""

    python: str | None = MISSING
    engine_memory: float = limited(Limit(0, 1, open=True, below=True))


@dataclass
class DeviceRuntime:
    device: str = words(*DEVICES)


@dataclass
class ScoringRuntime(Processes):
    """The device, batches and processes of a stage that scores texts with a model. In fp32, they change results by
    less than 1e-5 a token."""

    device: str = words(*DEVICES)
    token_budget: int | None = at_least(1)
    shard_size: int = at_least(1)


@dataclass
class InferenceRuntime:
    """The device and batches of a stage that samples from a model. In fp32, they change no token, and log-probs by less
    than 1e-5 a token."""

    device: str = words(*DEVICES, default="auto")
    # candidates decoded at once; fewer where memory is short
    batch_size: int = at_least(1, 512)
    # prompts of a shard, behind which a killed run resumes; null: by the device. It moves log-probs by about 1e-6
    shard_size: int | None = at_least(1, None)


@dataclass
class SamplingRuntime(InferenceRuntime, Processes):
    """Device, batches and processes of a sampler, and the Python and GPUs of vLLM. In fp32, they change no token."""

    python: str | None = None  # of vLLM, in an environment of its own; null: this Python
    tensor_parallel: int = at_least(1, 1)  # GPUs that share vLLM's model
