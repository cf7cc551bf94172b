"""How models are asked and compared."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.runtimes import DeviceRuntime, InferenceRuntime
from stages.config.choices import Precision, Split
from stages.config.limits import Limit, between, computed, limited, share


@dataclass
class Answer:
    split: Split = MISSING
    max_new_tokens: int = between(1, 65_536)
    max_dropped: float | None = share(None)
    precision: Precision = MISSING
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class Eval:
    retention: list[Source] = field(default_factory=list)
    confidence: float = limited(Limit(0, "must be above 0 and below 1: 0.95 is usual", high=1, open=True, below=True))
    likelihood_prompts: int = between(1, 1_000_000)
    precision: Precision = MISSING
    models: dict[str, str] = computed({})  # set by the pipeline: what is evaluated, role: title
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)
