"""The keys that exist, and their types. Values live in `conf/`; no torch is imported here.

`stage` names the target; every stage has its own block, always composed, so `dpo.beta=0.05` means the same
whatever the target. A block is all a stage sees of the configuration. Inside a block, `runtime` holds what cannot
change the result (and is left out of the fingerprint), `trainer` goes to TRL under TRL's own names. A key's limits
stand beside its type.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from stages.config.choices import (
    DEVICES,
    DOCUMENTS,
    LOSS_TYPES,
    OF_ROWS_AMONG_ROWS,
    SOURCE_CHECKS,
    Adapter,
    Checkpointing,
    Command,
    Demonstrations,
    DPOReference,
    ExportFormat,
    Forward,
    GGUFType,
    Precision,
    Reading,
    Role,
    Rubrics,
    Sharding,
    Split,
    Strategy,
    SweepMetric,
    Target,
    TrainedTurns,
    Unfinished,
    Upstream,
    Weights,
)
from stages.config.limits import Limit, between, computed, limited, neutral, place, positive, random_seed, share, words

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"


@dataclass
class RandomInit:
    """A randomly initialised Llama with a byte-level BPE tokenizer trained in place (`model=tiny`)."""

    hidden_size: int = between(2, 65_536)
    layers: int = between(1, 1000)
    heads: int = between(1, 1024)
    vocab_size: int = between(260, 1_000_000)  # all bytes and four tokens of its own
    seed: int = random_seed()


@dataclass
class Model:
    path: str | None = MISSING
    revision: str | None = MISSING
    random_init: RandomInit | None = None
    of: str | None = place()  # set by the pipeline: which key names it, where another than its own does

    @property
    def key(self) -> str:
        """What the path is called on the command line."""
        return self.of or "model.path"


@dataclass
class Own:
    """A part of your own, without a fork: class or function `name` in a Python file, made with `options`. The command
    line alone can name one. What is hashed, kept in the node and run are the same bytes."""

    file: str | None = None
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.file is not None


@dataclass
class Tasks:
    """Verifiable instructions, generated from a seed: prompts per group. `unseen_*` are test prompts; `open_*`,
    `unseen_kinds` and `unseen_areas` are open requests under constraints."""

    seed: int = random_seed()
    families: list[str] = MISSING
    sft: int = between(0, 1_000_000)
    preference: int = between(0, 1_000_000)
    validation: int = between(0, 1_000_000)
    test: int = between(0, 1_000_000)
    unseen_phrasings: int = between(0, 1_000_000)
    unseen_tasks: int = between(0, 1_000_000)
    rephrased: int = between(0, 1_000_000)
    open_sft: int = between(0, 1_000_000)
    open_preference: int = between(0, 1_000_000)
    open_validation: int = between(0, 1_000_000)
    open_test: int = between(0, 1_000_000)
    unseen_kinds: int = between(0, 1_000_000)
    unseen_areas: int = between(0, 1_000_000)
    open_plain: int = between(0, 1_000_000)


# Test prompts come first, so that a prompt which two splits would draw belongs to the test.
SPLIT_OF_GROUP = {
    "test": "test",
    "unseen_phrasings": "test",
    "unseen_tasks": "test",
    "rephrased": "test",
    "open_test": "test",
    "unseen_kinds": "test",
    "unseen_areas": "test",
    "open_plain": "test",
    "validation": "validation",
    "open_validation": "validation",
    "preference": "preference",
    "open_preference": "preference",
    "sft": "sft",
    "open_sft": "sft",
}


OPEN_GROUPS = (
    "open_test",
    "unseen_kinds",
    "unseen_areas",
    "open_plain",
    "open_validation",
    "open_preference",
    "open_sft",
)


DEFAULT_SHARES = {"sft": 0.95, "validation": 0.05}  # of a source that names none


@dataclass
class Source:
    """A file, folder, pattern or hub dataset. `columns` says which column has which role, with dots also inside of
    one; null leaves it out. `labels` are words for labels. `reasoning` before answers is kept or stripped. `task`
    phrases a labelled set as instructions, by its name or a YAML file. `documents` divides plain text. `licence` is
    that of all rows but those with one of their own. `splits` gives the share of its rows for each split (default: sft
    0.95, validation 0.05), decided by the content of the prompt. `check` makes prompts with an answer verifiable:
    `label` (the same words), `number` (the same last number).

    `epochs` is how often its rows for sft come (default 1; of a part some rows, drawn), `weight` its share of them
    against the weights of the others: as many rows as the scarcest source has for its share."""

    path: str = MISSING
    revision: str | None = None
    subset: str | None = None
    hub_split: str = "train"
    format: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: dict[Any, str] = field(default_factory=dict)
    reasoning: str | None = words("keep", "strip", default=None)
    task: str | None = None
    documents: str | None = words(*DOCUMENTS, default=None)
    licence: str | None = None
    rows: int | None = between(1, 1_000_000_000, None)
    check: str | None = words(*SOURCE_CHECKS, default=None)
    splits: dict[str, float] = field(default_factory=dict)
    weight: float | None = positive(1_000_000, None)
    epochs: float | None = positive(1000, None)

    @property
    def shares(self) -> dict[str, float]:
        """Of its rows, by split."""
        return self.splits or DEFAULT_SHARES

    @property
    def of_task(self) -> str:
        """What a quota calls it."""
        return Path(self.task).stem if self.task else Path(self.path).name


@dataclass
class Audit:
    """What becomes of rows that an audit finds something in, by code (`stage=audit` tells them, with examples): keep,
    drop, quarantine, or fix where that is unambiguous; a code without an action keeps its rows. `thresholds` are of
    codes that have one. `against` are evaluation sets, none of whose prompts may stand in a row that is contaminated
    by it."""

    actions: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    against: list[Source] | None = None

    @property
    def of_rows_alone(self) -> "Audit":
        """What one row tells by itself."""
        return self._of({*self.actions, *self.thresholds} - {*OF_ROWS_AMONG_ROWS}, self.against)

    @property
    def among_rows(self) -> "Audit":
        """What is found by the rows before one."""
        return self._of(OF_ROWS_AMONG_ROWS, None)

    def _of(self, codes: Collection[str], against: list[Source] | None) -> "Audit":
        actions = {code: action for code, action in self.actions.items() if code in codes}
        return Audit(actions, {code: least for code, least in self.thresholds.items() if code in codes}, against)


@dataclass
class Form:
    """One form for the rows of all sources. `system`: a conversation keeps its system message; where it has none it
    gets the one of `system_prompts` (insert); it loses its own (drop), or has one of `system_prompts` in its place,
    drawn by its content (vary). One that tells of tools stays. `unicode`: the normal form of characters. `whitespace`,
    trim: one sign at the end of lines and no space before it, plain spaces, no empty lines around a text."""

    system: str | None = words("keep", "insert", "drop", "vary", default=None)
    system_prompts: list[str] | None = None
    unicode: str | None = words("NFC", "NFKC", default=None)
    whitespace: str | None = words("keep", "trim", default=None)


@dataclass
class OptionalSource(Source):
    """A source that a run can do without."""

    path: str | None = None  # type: ignore[assignment]


@dataclass
class Mixture:
    """How rows of sources mix for sft: `cap` is how many a source counts for at most, so that the others show beside a
    large one (examples-proportional mixing, arXiv:1910.10683, section 3.5.2), `quotas` how many the sources of a task
    have together."""

    cap: int | None = between(1, 1_000_000_000, None)
    quotas: dict[str, int] = field(default_factory=dict)


@dataclass
class Data:
    """`tasks` is None for sets that the evaluation alone reads; `of` is then what names them."""

    tasks: Tasks | None = field(default_factory=Tasks)
    sources: list[Source] = field(default_factory=list)
    mixture: Mixture = field(default_factory=Mixture)
    max_bad: float = share()
    form: Form = field(default_factory=Form)
    audit: Audit = field(default_factory=Audit)
    own: Own = field(default_factory=Own)
    of: str | None = computed(None)

    def key(self, i: int) -> str:
        """What the path of a source is called on the command line."""
        return f"{self.of or 'data.sources'}[{i}].path"


@dataclass
class OneSource:
    """What `stage=source` reads, and of `data` what concerns rows one by one; the pipeline divides it. `of` is what
    names the source."""

    source: Source
    max_bad: float
    form: Form
    audit: Audit
    own: Own
    of: str | None = place()

    @property
    def key(self) -> str:
        """What the path is called on the command line."""
        return f"{self.of}.path"


@dataclass
class Template:
    kind: str = MISSING
    path: str | None = MISSING
    resize: bool = MISSING


@dataclass
class LoRA:
    """A low-rank adapter (arXiv:2106.09685); alpha / rank scales it. `target_modules` are names of linear layers, or
    all-linear (peft's name for all of them but the head)."""

    rank: int = between(1, 65_536)
    alpha: int = between(1, 65_536)
    target_modules: list[str] = MISSING


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


@dataclass
class Training:
    """What every objective's block has: what is trained, how fast, on what, and TRL's arguments beyond that."""

    adapter: Adapter = MISSING
    lora: LoRA = field(default_factory=LoRA)
    learning_rate: float = positive()
    epochs: float = positive(10_000)
    batch_size: int = between(1, 1_000_000)
    max_length: int = between(1, 10_000_000)
    evaluations: int = between(0, 1000)
    max_dropped: float = share()
    precision: Precision = MISSING
    seed: int = random_seed()
    trainer: dict[str, Any] = field(default_factory=dict)
    runtime: TrainRuntime = field(default_factory=TrainRuntime)

    @property
    def held(self) -> Weights:
        """How the weights are held that training starts from. Trained ones are fp32; frozen ones may be less. An
        adapter that is continued was merged into fp32 weights, so it stands on them again."""
        if self.adapter is Adapter.qlora:
            return Weights.nf4
        bf16 = self.adapter is Adapter.lora and self.precision is Precision.bf16
        return Weights.bf16 if bf16 else Weights.fp32


@dataclass
class SFT(Training):
    train: bool = MISSING
    demonstrations: Demonstrations | None = None  # null: selected where data.tasks.open_sft asks something
    trained_turns: TrainedTurns | None = None  # null: all
    control: bool | None = computed(None)  # set by the pipeline: on chosen completions, from SFT
    template: Template = field(default_factory=Template)
    packing: bool = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)


@dataclass
class Price:
    """Of a million tokens."""

    input: float | None = between(0, 1_000_000, None)
    output: float | None = between(0, 1_000_000, None)

    @property
    def known(self) -> bool:
        return self.input is not None and self.output is not None


@dataclass
class Budget:
    """What one node may spend at an endpoint. It stops before the call that could be too much; `money` goes by the
    model's price."""

    calls: int | None = between(1, 1_000_000_000, None)
    tokens: int | None = between(1, 1_000_000_000_000, None)
    money: float | None = positive(1_000_000_000, None)


@dataclass
class EndpointRuntime:
    """How fast an endpoint is asked, and how often again where it does not answer."""

    concurrency: int = between(1, 10_000, 8)  # calls at once
    requests_per_minute: int | None = between(1, 10_000_000, None)
    tokens_per_minute: int | None = between(1, 1_000_000_000, None)
    timeout: float = positive(86_400, 120.0)  # seconds for a whole answer
    retries: int = between(0, 100, 5)  # of a call that failed
    backoff: float = positive(3600, 1.0)  # seconds before the first retry at most, doubled for each that follows


@dataclass
class Endpoint:
    """A model at an OpenAI-compatible server. `api_key_env` is the *name* of the environment variable that holds the
    key. `extra` goes into every request, under the server's own names; null takes a name out of it."""

    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = neutral(lambda: None)
    budget: Budget = neutral(Budget)
    price: Price = neutral(Price)  # null: what `prices` says of the model
    extra: dict[str, Any] = field(default_factory=dict)
    runtime: EndpointRuntime = field(default_factory=EndpointRuntime)


@dataclass
class Member:
    """One source of a pool: a model, an endpoint, or a file with candidates. What is null is as `sample` has it.
    `model`: policy (of this round), previous (what that was trained from), sft, base, or a folder or hub id."""

    model: str | None = None
    endpoint: Endpoint = field(default_factory=Endpoint)  # of a model elsewhere
    file: str | None = None  # of candidates that somebody has already
    columns: dict[str, Any] = field(default_factory=dict)  # of that file
    sampler: str | None = None
    temperature: float | None = between(0, 100, None)
    top_p: float | None = limited(Limit(0, "must be positive and at most 1", high=1, open=True), None)
    n: int | None = between(1, 10_000, None)  # candidates of a prompt


@dataclass
class Pool:
    """What `stage=pool` brings together: the names of its sources, one for each of its inputs after the policy."""

    members: list[str]


@dataclass
class Sample:
    sampler: str = MISSING
    own: Own = field(default_factory=Own)
    prompts: int | None = between(1, 1_000_000_000)
    candidates_per_prompt: int = between(1, 10_000)
    temperatures: list[float] = between(0, 100)
    top_p: float = limited(Limit(0, "must be positive and at most 1", high=1, open=True))
    max_new_tokens: int = between(1, 65_536)
    precision: Precision = MISSING
    seed: int = random_seed()
    rounds: int = between(1, 100)
    round: int = computed(0)  # these two set by the pipeline: which share of the prompts this round of DPO samples,
    split: Split | None = computed(None)  # and of which split they are; None: preference
    endpoint: Endpoint = field(default_factory=Endpoint)
    file: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    pool: list[Member] | None = None
    max_failed: float | None = share(None)
    of: str | None = place()  # set by the pipeline: which key names it, where another than its own does
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)

    @property
    def key(self) -> str:
        """What this block is called on the command line."""
        return self.of or "sample"

    @property
    def members(self) -> list["Sample"]:
        """The block of each source of the pool; without a pool this one."""
        return [self.member(i, member) for i, member in enumerate(self.pool)] if self.pool else [self]

    def member(self, i: int, member: Member) -> "Sample":
        sampler = member.sampler or ("openai" if member.endpoint != Endpoint() else self.sampler)
        return replace(
            self,
            pool=None,
            of=f"sample.pool[{i}]",
            sampler=sampler,
            own=self.own if sampler == self.sampler and not member.file else Own(),
            candidates_per_prompt=member.n or self.candidates_per_prompt,
            temperatures=self.temperatures if member.temperature is None else [member.temperature],
            top_p=member.top_p or self.top_p,
            endpoint=member.endpoint,
            file=member.file,
            columns=member.columns,
        )

    @property
    def most(self) -> int | None:
        """Candidates of a prompt, at most; None where a file brings any number."""
        blocks = self.members
        return None if any(block.file for block in blocks) else sum(block.candidates_per_prompt for block in blocks)


@dataclass
class Judge:
    """Models at endpoints that judge by a rubric: which of two candidates is better, or a score of each."""

    endpoints: list[Endpoint] | None = None
    kind: Rubrics | None = None
    rubric: str | None = None
    reading: Reading | None = None
    comparisons: int | None = between(1, 1_000_000, None)
    temperature: float | None = between(0, 100, None)
    max_tokens: int | None = between(1, 65_536, None)
    attempts: int | None = between(1, 100, None)
    seed: int | None = random_seed(None)


@dataclass
class HumanRuntime:
    """Where the server for people listens."""

    host: str | None = None
    port: int | None = between(0, 65_535, None)


@dataclass
class Human:
    """People who judge in a browser: what they are asked, and how many of them."""

    instructions: str | None = None
    prompts: int | None = between(1, 1_000_000_000, None)
    answers: int | None = between(2, 6, None)
    comparisons: int | None = between(1, 1_000_000, None)
    overlap: float | None = share(None)
    annotators: int | None = between(2, 1000, None)
    reasons: list[str] | None = None
    seed: int | None = random_seed(None)
    answered: str | None = neutral(lambda: None)  # recorded, as what is said here
    runtime: HumanRuntime = field(default_factory=HumanRuntime)


@dataclass
class RewardModel:
    """A sequence-classification model with one output, which scores candidates: a folder or a hub repository, or where
    `path` is null the run's own, of `reward`."""

    path: str | None = None
    revision: str | None = None
    precision: Precision | None = None
    runtime: InferenceRuntime = field(default_factory=lambda: InferenceRuntime("auto", 16, 256))


@dataclass
class Voter:
    """One labeler of an ensemble, with the settings of its own block in `label`. A candidate that it scores below
    `veto` is never preferred, whatever the others say."""

    labeler: str = MISSING
    weight: float = between(0, 1_000_000, 1.0)
    veto: float | None = share(None)


@dataclass
class Ensemble:
    """Several labelers that vote on two candidates at a time, and people where these disagree."""

    members: list[Voter] | None = None
    people: int | None = between(1, 1_000_000_000, None)


@dataclass
class Label:
    labeler: str = MISSING
    own: Own = field(default_factory=Own)
    path: str | None = MISSING
    revision: str | None = MISSING
    subset: str | None = None
    hub_split: str = MISSING
    format: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    labels: dict[Any, str] = field(default_factory=dict)
    reasoning: str | None = words("keep", "strip", default=None)
    licence: str | None = None
    max_failed: float = share()
    judge: Judge = field(default_factory=Judge)
    human: Human = field(default_factory=Human)
    reward_model: RewardModel = field(default_factory=RewardModel)
    ensemble: Ensemble = field(default_factory=Ensemble)
    audit: int | None = between(1, 1_000_000, None)
    known: str | None = None
    of: str | None = computed(None)  # set by the pipeline: the key of a source that is labels and no part of the chain

    @property
    def brings_pool(self) -> bool:
        """Whether the labels come with candidates of their own, so that nothing is sampled for them."""
        return self.labeler == "dataset" and not self.own

    @property
    def source(self) -> Source:
        """The preference set that brings them."""
        return Source(**{key.name: vars(self)[key.name] for key in fields(Source) if key.name in vars(self)})

    @property
    def voters(self) -> list[Voter]:
        """The members of an ensemble; none of any other labeler."""
        return self.ensemble.members or [] if self.labeler == "ensemble" and not self.own else []

    @property
    def labelers(self) -> list[str]:
        """Who labels: the labeler, or an ensemble's members and the people that it asks; nobody where it is one of the
        user's own."""
        if self.labeler != "ensemble" or self.own:
            return [] if self.own else [self.labeler]
        return [voter.labeler for voter in self.voters] + (["human"] if self.ensemble.people else [])

    def member(self, labeler: str) -> "Label":
        """The block of an ensemble's member: that of a run in which it labels alone, and so are its judgements."""
        return replace(
            self,
            labeler=labeler,
            judge=self.judge if labeler == "judge" else Judge(),
            reward_model=self.reward_model if labeler == "reward_model" else RewardModel(),
            human=Human(),
            ensemble=Ensemble(),
            audit=None,
            known=None,
        )

    @property
    def joined(self) -> "Label":
        """The block of an ensemble without what its members' blocks say."""
        human = self.human if self.ensemble.people else Human()
        return replace(self, judge=Judge(), reward_model=RewardModel(), human=human)

    @property
    def by_reward(self) -> bool:
        """Whether the run's own reward model labels."""
        return "reward_model" in self.labelers and self.reward_model.path is None

    @property
    def key(self) -> str:
        """What the path of a file is called on the command line."""
        return f"{self.of or 'label'}.path"


@dataclass
class Select:
    """Which judged candidates become examples, and how those of the base are drawn."""

    candidates_per_prompt: int = between(1, 10_000)
    temperatures: list[float] = between(0, 100)
    max_new_tokens: int = between(1, 65_536)
    min_score: float = share()
    max_per_task: int = between(1, 1_000_000)
    max_mended: int = between(0, 1_000_000)
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))


@dataclass
class Pairs:
    strategy: Strategy = MISSING
    min_score: float = share()
    min_margin: float = limited(Limit(0, "is a difference of two scores: from 0 to below 1", high=1, below=True))
    margin_quantiles: list[float] | None = between(0, 1, None)
    max_length_ratio: float | None = between(1, 1_000_000)
    max_per_prompt: int = between(1, 1_000_000)
    max_per_task: int | None = between(1, 1_000_000)
    quality: bool = MISSING
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))
    seed: int = random_seed()


@dataclass
class Unpaired:
    """KTO's rows: from which score on a completion is desirable. Preferences need no threshold."""

    threshold: float = share()
    unfinished: Unfinished = MISSING
    validation_fraction: float = limited(Limit(0, "is a share from 0 to below 1", high=1, below=True))


@dataclass
class Reference:
    precision: Precision = MISSING
    weights: Weights = computed(Weights.fp32)  # these two set by the pipeline: as DPO holds and runs the policy
    forward: Forward = computed(Forward.shared_prefix)
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class DPO(Training):
    beta: float = positive(1000)
    loss_type: list[str] = words(*LOSS_TYPES)
    loss_weights: list[float] | None = between(0, 1_000_000)
    reference: DPOReference = MISSING
    forward: Forward = MISSING
    runtime: SampledRuntime = field(default_factory=SampledRuntime)


@dataclass
class Reward(Training):
    """A reward model, from the SFT model. `source` is what it learns from; with a path of null, the chain's pairs."""

    source: OptionalSource = neutral(OptionalSource)  # its rows come as pairs
    margin: bool = MISSING
    forward: Forward = MISSING


@dataclass
class Answer:
    split: Split = MISSING
    max_new_tokens: int = between(1, 65_536)
    precision: Precision = MISSING
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)


@dataclass
class Eval:
    retention: list[Source] = field(default_factory=list)
    confidence: float = limited(Limit(0, "must be above 0 and below 1: 0.95 is usual", high=1, open=True, below=True))
    bootstrap_samples: int = between(1, 100_000)  # a draw is a line of some hundred counts
    likelihood_prompts: int = between(1, 1_000_000)
    seed: int = random_seed()
    precision: Precision = MISSING
    models: dict[str, str] = computed({})  # set by the pipeline: what is evaluated, role: title
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)


@dataclass
class Report:
    side_by_side: int = between(0, 1000)


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

    processes: int = between(1, 1024)
    nodes: int = between(1, 10_000)
    node_rank: int = between(0, 9_999)
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
    model: Role = MISSING
    side_by_side: bool = MISSING
    temperature: float = between(0, 100)
    max_new_tokens: int = between(1, 65_536)
    precision: Precision = MISSING
    seed: int = random_seed()
    runtime: DeviceRuntime = field(default_factory=DeviceRuntime)


@dataclass
class Export:
    format: ExportFormat = MISSING
    model: Role = MISSING
    dtype: GGUFType = MISSING
    repo: str | None = MISSING
    private: bool = MISSING


@dataclass
class Config:
    stage: str = MISSING  # a Target or a Command
    outputs: str = MISSING
    seed: int = random_seed()
    precision: Precision = MISSING
    rounds: int = between(1, 100)
    sweep_metric: SweepMetric = MISSING
    upstream: Upstream = MISSING
    rebuild: Target | None = MISSING
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    outside: list[Source] = field(default_factory=list)
    seeds: list[int] = random_seed()
    sft: SFT = field(default_factory=SFT)
    sample: Sample = field(default_factory=Sample)
    label: Label = field(default_factory=Label)
    select: Select = field(default_factory=Select)
    pairs: Pairs = field(default_factory=Pairs)
    unpaired: Unpaired = field(default_factory=Unpaired)
    control: bool = MISSING
    control_learning_rate: float = positive()
    reference: Reference = field(default_factory=Reference)
    dpo: DPO = field(default_factory=DPO)
    reward: Reward = field(default_factory=Reward)
    answer: Answer = field(default_factory=Answer)
    eval: Eval = field(default_factory=Eval)
    report: Report = field(default_factory=Report)
    tracker: Tracker = field(default_factory=Tracker)
    launch: Launch = field(default_factory=Launch)
    compare: Compare = field(default_factory=Compare)
    gc: GC = field(default_factory=GC)
    chat: Chat = field(default_factory=Chat)
    export: Export = field(default_factory=Export)
    prices: dict[str, Price] = field(default_factory=dict)

    @property
    def trained(self) -> dict[str, Training]:
        """The blocks of what this run trains, by name. A reward model is trained for itself, or because it is said
        what it learns from."""
        rewarded = self.stage == Target.reward or self.reward.source.path
        return {"sft": self.sft, "dpo": self.dpo} | ({"reward": self.reward} if rewarded else {})

    @property
    def selects(self) -> bool:
        """Whether the base answers the prompts that nobody has answered, for SFT to learn from its best."""
        if self.sft.demonstrations is None:
            return self.sft.train and bool(self.data.tasks and self.data.tasks.open_sft)
        return self.sft.demonstrations is Demonstrations.selected

    @property
    def unpaired_wanted(self) -> bool:
        """Whether labels of single completions are asked for: nothing else of the chain reads them."""
        published = self.stage == Command.export and self.export.format is ExportFormat.dataset
        return self.stage == Target.unpaired or published

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The endpoints that this run asks, by their keys."""
        judges = self.label.judge.endpoints or [] if "judge" in self.label.labelers else []
        found = {f"label.judge.endpoints[{i}]": endpoint for i, endpoint in enumerate(judges)}
        asking = [block for block in self.sample.members if block.sampler == "openai" and not block.file]
        return found | {f"{block.key}.endpoint": block.endpoint for block in asking}
