"""The keys that exist, and their types. Values live in `conf/`; no torch is imported here.

`stage` names the target; every stage has its own block, always composed, so `dpo.beta=0.05` means the same
whatever the target. A block is all a stage sees of the configuration. Inside a block, `runtime` holds what cannot
change the result (and is left out of the fingerprint), `trainer` goes to TRL under TRL's own names.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from stages.config.choices import (
    Adapter,
    Checkpointing,
    DPOReference,
    ExportFormat,
    Forward,
    GGUFType,
    ModelStage,
    Objective,
    Precision,
    Sharding,
    Split,
    Stage,
    Strategy,
    Upstream,
    Weights,
)

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


@dataclass
class RandomInit:
    """A randomly initialised Llama with a byte-level BPE tokenizer trained in place (`model=tiny`)."""

    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    vocab_size: int = MISSING
    seed: int = MISSING


@dataclass
class Model:
    path: str | None = MISSING
    revision: str | None = MISSING
    random_init: RandomInit | None = None


@dataclass
class Tasks:
    """Verifiable instructions, generated from a seed: prompts per split; `unseen_*` are test prompts."""

    seed: int = MISSING
    families: list[str] = MISSING
    sft: int = MISSING
    preference: int = MISSING
    validation: int = MISSING
    test: int = MISSING
    unseen_phrasings: int = MISSING
    unseen_tasks: int = MISSING
    rephrased: int = MISSING


# Test prompts come first, so that a prompt which two splits would draw belongs to the test.
SPLIT_OF_GROUP = {
    "test": "test",
    "unseen_phrasings": "test",
    "unseen_tasks": "test",
    "rephrased": "test",
    "validation": "validation",
    "preference": "preference",
    "sft": "sft",
}


DEFAULT_SHARES = {"sft": 0.95, "validation": 0.05}  # of a source that names none


@dataclass
class Source:
    """A file, folder or hub dataset. `splits` gives the share of its rows for each split (default: sft 0.95,
    validation 0.05), decided by the content of the prompt. `check` makes prompts with an answer verifiable: `label`
    (the same words), `number` (the same last number)."""

    path: str = MISSING
    revision: str | None = None
    hub_split: str = "train"
    rows: int | None = None
    check: str | None = None
    splits: dict[str, float] = field(default_factory=dict)


@dataclass
class Data:
    """`tasks` is None for the labelled sets of `outside`."""

    tasks: Tasks | None = field(default_factory=Tasks)
    sources: list[Source] = field(default_factory=list)
    max_bad: float = MISSING

    def key(self, i: int) -> str:
        """What the path of a source is called on the command line."""
        return f"{'data.sources' if self.tasks else 'outside'}[{i}].path"


@dataclass
class Template:
    kind: str = MISSING
    path: str | None = MISSING
    resize: bool = MISSING


@dataclass
class LoRA:
    """A low-rank adapter (arXiv:2106.09685); alpha / rank scales it. `target_modules` are names of linear layers, or
    all-linear (peft's name for all of them but the head)."""

    rank: int = MISSING
    alpha: int = MISSING
    target_modules: list[str] = MISSING


@dataclass
class TrainRuntime:
    """Devices and cadence of a training stage. Neutral: an optimizer step is always `batch_size` rows, whatever goes
    through the model at once. `micro_batch` is a number of rows in each process, or auto."""

    device: str = MISSING
    processes: int = MISSING
    nodes: int = MISSING
    sharding: Sharding = MISSING
    micro_batch: int | str = MISSING
    token_budget: int | None = MISSING
    gradient_checkpointing: Checkpointing = MISSING
    loader_workers: int = MISSING
    save_steps: int = MISSING

    @property
    def world_size(self) -> int:
        return self.processes * self.nodes

    @property
    def rows(self) -> int | None:
        """How many rows each micro-batch has; None: as many as the token budget holds."""
        return None if self.micro_batch == "auto" else int(self.micro_batch)


@dataclass
class DeviceRuntime:
    device: str = MISSING


@dataclass
class InferenceRuntime:
    """Devices and cadence of a stage that only runs the model forward. Neutral in fp32."""

    device: str = MISSING
    batch_size: int = MISSING
    shard_size: int = MISSING


@dataclass
class SFT:
    train: bool = MISSING
    template: Template = field(default_factory=Template)
    adapter: Adapter = MISSING
    lora: LoRA = field(default_factory=LoRA)
    learning_rate: float = MISSING
    epochs: float = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING
    packing: bool = MISSING
    evaluations: int = MISSING
    max_dropped: float = MISSING
    precision: Precision = MISSING
    seed: int = MISSING
    trainer: dict[str, Any] = field(default_factory=dict)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)


@dataclass
class Sample:
    sampler: str = MISSING
    prompts: int | None = MISSING
    candidates_per_prompt: int = MISSING
    temperatures: list[float] = MISSING
    top_p: float = MISSING
    max_new_tokens: int = MISSING
    precision: Precision = MISSING
    seed: int = MISSING
    rounds: int = MISSING
    round: int = 0  # set by the pipeline: which share of the prompts this round of DPO samples
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class Label:
    labeler: str = MISSING
    path: str | None = MISSING
    revision: str | None = MISSING
    hub_split: str = MISSING
    max_failed: float = MISSING


@dataclass
class Pairs:
    strategy: Strategy = MISSING
    min_score: float = MISSING
    min_margin: float = MISSING
    max_length_ratio: float | None = MISSING
    max_per_prompt: int = MISSING
    validation_fraction: float = MISSING
    seed: int = MISSING


@dataclass
class Reference:
    precision: Precision = MISSING
    weights: Weights = Weights.fp32  # these two set by the pipeline: as DPO holds and runs the policy
    forward: Forward = Forward.shared_prefix
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class DPO:
    adapter: Adapter = MISSING
    lora: LoRA = field(default_factory=LoRA)
    beta: float = MISSING
    learning_rate: float = MISSING
    epochs: float = MISSING
    batch_size: int = MISSING
    max_length: int = MISSING
    loss_type: list[str] = MISSING
    loss_weights: list[float] | None = MISSING
    reference: DPOReference = MISSING
    forward: Forward = MISSING
    evaluations: int = MISSING
    max_dropped: float = MISSING
    precision: Precision = MISSING
    seed: int = MISSING
    trainer: dict[str, Any] = field(default_factory=dict)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)


@dataclass
class Answer:
    split: Split = MISSING
    max_new_tokens: int = MISSING
    precision: Precision = MISSING
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class Eval:
    confidence: float = MISSING
    bootstrap_samples: int = MISSING
    likelihood_prompts: int = MISSING
    seed: int = MISSING
    precision: Precision = MISSING
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)


@dataclass
class Report:
    side_by_side: int = MISSING


@dataclass
class Tracker:
    name: str = MISSING
    project: str = MISSING
    entity: str | None = MISSING
    group: str | None = MISSING
    upload: bool = MISSING


@dataclass
class Launch:
    """Processes of a training stage. Several nodes share the store; node 0 plans, locks and publishes."""

    processes: int = MISSING
    nodes: int = MISSING
    node_rank: int = MISSING
    rendezvous: str | None = MISSING
    sharding: Sharding = MISSING


@dataclass
class Compare:
    sweep: str | None = MISSING


@dataclass
class GC:
    remove: bool = MISSING


@dataclass
class Chat:
    model: ModelStage = MISSING
    compare: bool = MISSING
    temperature: float = MISSING
    max_new_tokens: int = MISSING
    precision: Precision = MISSING
    seed: int = MISSING
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)


@dataclass
class Export:
    format: ExportFormat = MISSING
    model: ModelStage = MISSING
    dtype: GGUFType = MISSING
    repo: str | None = MISSING
    private: bool = MISSING


@dataclass
class Config:
    stage: Stage = MISSING
    outputs: str = MISSING
    seed: int = MISSING
    precision: Precision = MISSING
    rounds: int = MISSING
    objective: Objective = MISSING
    upstream: Upstream = MISSING
    rebuild: Stage | None = MISSING
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    outside: list[Source] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    sft: SFT = field(default_factory=SFT)
    sample: Sample = field(default_factory=Sample)
    label: Label = field(default_factory=Label)
    pairs: Pairs = field(default_factory=Pairs)
    reference: Reference = field(default_factory=Reference)
    dpo: DPO = field(default_factory=DPO)
    answer: Answer = field(default_factory=Answer)
    eval: Eval = field(default_factory=Eval)
    report: Report = field(default_factory=Report)
    tracker: Tracker = field(default_factory=Tracker)
    launch: Launch = field(default_factory=Launch)
    compare: Compare = field(default_factory=Compare)
    gc: GC = field(default_factory=GC)
    chat: Chat = field(default_factory=Chat)
    export: Export = field(default_factory=Export)


def held(block: SFT | DPO) -> Weights:
    """How the weights are held that a training stage starts from. Trained ones are fp32; frozen ones may be less. An
    adapter that is continued was merged into fp32 weights, so it stands on them again."""
    if block.adapter is Adapter.qlora:
        return Weights.nf4
    return Weights.bf16 if block.adapter is Adapter.lora and block.precision is Precision.bf16 else Weights.fp32
