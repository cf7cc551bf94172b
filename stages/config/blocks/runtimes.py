"""What cannot change a result: devices, sizes of micro-batches, cadence. Left out of fingerprints."""

from dataclasses import dataclass

from omegaconf import MISSING

from stages.config.choices import DEVICES, Checkpointing, Sharding
from stages.config.limits import between, positive, words


@dataclass
class TrainRuntime:
    """Devices and cadence of a training stage. Neutral: an optimizer step is always `batch_size` rows, whatever goes
    through the model at once. `micro_batch` is a number of rows in each process, or auto."""

    device: str = words(*DEVICES)
    processes: int = between(1, 1024)
    nodes: int = between(1, 10_000)
    sharding: Sharding = MISSING
    micro_batch: int | str = between(1, 1_000_000)
    token_budget: int | None = between(1, 1_000_000_000)
    gradient_checkpointing: Checkpointing = MISSING
    loader_workers: int = between(0, 1024)
    save_steps: int = between(1, 1_000_000_000)
    save_minutes: float = positive(1_000_000)

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @property
    def rows(self) -> int | None:
        """How many rows each micro-batch has; None: as many as the token budget holds."""
        return None if self.micro_batch == "auto" else int(self.micro_batch)


@dataclass
class SampledRuntime(TrainRuntime):
    """Devices and cadence of a training stage, and the prompts that the model answers on its way. Neutral, as
    `TrainRuntime`."""

    samples: int = between(0, 100)
    sample_tokens: int = between(1, 65_536)


@dataclass
class DeviceRuntime:
    device: str = words(*DEVICES)


@dataclass
class InferenceRuntime:
    """Devices and cadence of a stage that only runs the model forward. Neutral in fp32."""

    device: str = words(*DEVICES)
    batch_size: int = between(1, 1_000_000)
    shard_size: int = between(1, 1_000_000)
