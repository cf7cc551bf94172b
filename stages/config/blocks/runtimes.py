"""Blocks `runtime`: devices, sizes of micro-batches, checkpoints. They change no result and no fingerprint."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import DEVICES, Checkpointing, Sharding
from stages.config.limits import Limit, between, limited, positive, words


@dataclass
class Processes:
    """The processes that work on a stage, on each of several nodes."""

    processes: int = between(1, 1024, 1)
    nodes: int = between(1, 10_000, 1)

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes


@dataclass
class TrainRuntime(Processes):
    """Devices, memory and checkpoints of a training stage. They do not change the result: an optimizer step always has
    `batch_size` rows, in micro-batches of any size."""

    device: str = words(*DEVICES)
    sharding: Sharding = MISSING
    micro_batch: int | str = between(1, 1_000_000)
    token_budget: int | None = between(1, 1_000_000_000)
    gradient_checkpointing: Checkpointing = MISSING
    loader_workers: int = between(0, 1024)
    save_steps: int = between(1, 1_000_000_000)
    save_minutes: float = positive(1_000_000)

    @property
    def rows(self) -> int | None:
        """The number of rows in a micro-batch; None if the token budget decides it."""
        return None if self.micro_batch == "auto" else int(self.micro_batch)


@dataclass
class SampledRuntime(TrainRuntime):
    """Devices, memory and checkpoints of a training stage, and the sample answers during training. They do not change
    the result: an optimizer step always has `batch_size` rows, in micro-batches of any size."""

    samples: int = between(0, 100)
    sample_tokens: int = between(1, 65_536)


@dataclass
class RolloutRuntime(SampledRuntime):
    """As `sft.runtime`, with the Python and GPU memory of vLLM."""

    python: str | None = MISSING
    engine_memory: float = limited(
        Limit(0, "must be a share above 0 and below 1", high=1, open=True, below=True)
    )


@dataclass
class DeviceRuntime:
    device: str = words(*DEVICES)


@dataclass
class ChatRuntime(DeviceRuntime):
    """The device of a chat, and the Python and GPUs of vLLM."""

    python: str | None = MISSING
    tensor_parallel: int = between(1, 1024)


@dataclass
class ScoringRuntime(Processes):
    """The device, batches and processes of a stage that scores texts with a model. In fp32, they change no result."""

    device: str = words(*DEVICES)
    token_budget: int | None = between(1, 1_000_000_000)
    shard_size: int = between(1, 1_000_000)


@dataclass
class InferenceRuntime:
    """The device and batches of a stage that samples from a model. In fp32, they change no result."""

    device: str = words(*DEVICES, default="auto")
    # candidates decoded at once; fewer where memory is short
    batch_size: int = between(1, 1_000_000, 512)
    # prompts of a shard, behind which a killed run resumes; null: by the device
    shard_size: int | None = between(1, 1_000_000, None)


@dataclass
class SamplingRuntime(InferenceRuntime, Processes):
    """Device, batches and processes of a sampler, and the Python and GPUs of vLLM. In fp32, they change no result."""

    python: str | None = None  # of vLLM, in an environment of its own; null: this Python
    tensor_parallel: int = between(1, 1024, 1)  # GPUs that share vLLM's model
