"""The block `sample`: the sources of candidates. One class per sampler; the group `sample=NAME` picks the class."""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.choices import Precision, Split
from stages.config.errors import UserError, require_known
from stages.config.limits import Limit, at_least, computed, internal, limited, random_seed, share


@dataclass
class Sample:
    """What every source of candidates has: the prompts that are asked."""

    sampler: str = computed(MISSING)  # the group's option
    prompts: int | None = at_least(1, None)  # of the preference split; null: all
    # prompts that each round asks, and no other round; null: all, divided among the rounds
    prompts_per_round: int | None = at_least(1, None)
    rounds: int = computed(1)  # set by the pipeline
    # set by the pipeline: the round of DPO, which samples its share of the prompts
    round: int = computed(0)
    key: str = internal("sample")  # the setting that holds this block: the pipeline sets any other

    @property
    def brings_prompts(self) -> bool:
        """True if the source of candidates has prompts of its own, as only a file can."""
        return False

    @property
    def members(self) -> "list[Sample]":
        """The block of each source of candidates: this block alone, if it has no pool."""
        return [self]

    @property
    def most_candidates(self) -> int | None:
        """The most candidates of a prompt; None if there may be any number."""
        return None

    def check(self) -> None:
        """Raise UserError for keys that do not fit together."""


@dataclass
class CandidateFile(Sample):
    """Candidates that somebody has already, in a file or folder."""

    # not part of the fingerprint, which `file` tells already
    sampler: str = internal("file")
    # needed: rows with prompt or messages, and completion or completions
    file: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)  # {ROLE: COLUMN}; null leaves one out
    # false: it answers prompts of the data
    own_prompts: bool = True
    # share of rows that may be unusable; null: none
    max_failed: float | None = share(None)
    limits: Any = internal()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    turns: str | None = computed(None)  # set by the pipeline from data.form.turns

    @property
    def brings_prompts(self) -> bool:
        return self.own_prompts

    @property
    def source(self) -> Source:
        """The file as a source of rows."""
        return Source(str(self.file), columns=self.columns, limits=self.limits, turns=self.turns)

    def check(self) -> None:
        if not self.file:
            raise UserError(
                "sample=file needs a file of prompts and completions. Add sample.file=FILE."
            )


@dataclass
class Member:
    """One source of `sample.pool`: a model, an endpoint or a file. For a null key, the key of `sample` counts."""

    # policy (this round's), previous (the round before), sft, base, a folder or a hub id
    model: str | None = None
    endpoint: Endpoint = field(default_factory=Endpoint)  # a model at a server
    file: str | None = None  # a file or folder with candidates
    columns: dict[str, Any] = field(default_factory=dict)  # {ROLE: COLUMN} of that file
    sampler: str | None = None  # hf, generate, vllm or openai
    temperature: float | None = None
    top_p: float | None = limited(Limit(0, 1, open=True), None)
    n: int | None = at_least(1, None)  # candidates per prompt

    def check(self, key: str) -> None:
        """Raise UserError for more than one of model, endpoint and file, for keys of sampling beside a file, or for an
        unknown sampler."""
        has_endpoint = self.endpoint != Endpoint()
        kinds = {"model": self.model, "endpoint": has_endpoint, "file": self.file}
        origins = [name for name, is_set in kinds.items() if is_set]
        if len(origins) > 1:
            raise UserError(f"{key} names {' and '.join(origins)}. Make each a source.")
        sampling_keys = [name for name in SAMPLING_KEYS if vars(self)[name] is not None]
        if self.file and sampling_keys:
            raise UserError(
                f"{key}.{sampling_keys[0]} is about sampling, and {key}.file is sampled. Leave it out."
            )
        if self.sampler:
            require_known(f"{key}.sampler", [self.sampler], SAMPLERS)


# keys of a member that a model samples for
SAMPLING_KEYS = ("sampler", "temperature", "top_p", "n")


@dataclass
class Pool:
    """The block of `stage=pool`, which joins sources of candidates: a name for each input after the policy."""

    members: list[str]


Kind = TypeVar("Kind", bound="DrawnCandidates")


@dataclass
class DrawnCandidates(Sample):
    """Candidates that are drawn from the policy, or from the sources of `pool`."""

    own: Own = field(default_factory=Own)
    candidates_per_prompt: int = at_least(1, 6)  # completions drawn for each
    # candidate i uses the i-th, cyclically
    temperatures: list[float] = at_least(0, [0.9])
    # nucleus sampling; 1.0 draws from all tokens
    top_p: float = limited(Limit(0, 1, open=True), 1.0)
    # a longer completion is cut off, and never chosen
    max_new_tokens: int = at_least(1, 64)
    # share of prompts that may be too long for the model, beside their answer; null: 0.1
    max_dropped: float | None = share(None)
    precision: Precision = Precision.auto  # of weights and arithmetic
    seed: int = random_seed(0)  # with the prompt, it decides what is drawn
    # set by the pipeline: the split of the prompts; null: preference
    split: Split | None = computed(None)
    # several sources in place of the policy: [{n: 4}, {model: FOLDER, n: 2}, {endpoint: {…}}, {file: FILE}]
    pool: list[Member] | None = None
    # share of candidates that may be missing, where some can: of an endpoint, a file or `own`
    max_failed: float | None = share(None)
    runtime: SamplingRuntime = field(default_factory=SamplingRuntime)

    def __post_init__(self) -> None:
        self.pool = self.pool or None  # an empty pool is none, and changes no node

    @property
    def command_line_block(self) -> str:
        """The block on the command line with these keys: `select` for prompts of SFT, else `sample`."""
        return "select" if self.split is Split.sft else "sample"

    @property
    def members(self) -> list[Sample]:
        if not self.pool:
            return [self]
        return [
            self.member_block(member, f"sample.pool[{i}]") for i, member in enumerate(self.pool)
        ]

    def member_block(self, member: Member, key: str) -> Sample:
        """Return the block of a source of the pool: of its file, or of its sampler with its own settings."""
        if member.file:
            return CandidateFile(
                file=member.file,
                columns=member.columns,
                own_prompts=False,
                prompts=self.prompts,
                prompts_per_round=self.prompts_per_round,
                rounds=self.rounds,
                round=self.round,
                max_failed=self.max_failed,
                key=key,
            )
        sampler = member.sampler or ("openai" if member.endpoint != Endpoint() else self.sampler)
        own = self.own if sampler == self.sampler else Own()
        can_fail = own or sampler == "openai"
        temperatures = [member.temperature] if member.temperature is not None else self.temperatures
        return self.with_sampler(
            SAMPLERS.get(sampler, type(self)),  # `check` refuses an unknown one
            own=own,
            candidates_per_prompt=member.n or self.candidates_per_prompt,
            temperatures=temperatures,
            top_p=member.top_p or self.top_p,
            pool=None,
            endpoint=member.endpoint,
            max_failed=self.max_failed if can_fail else None,
            key=key,
        )

    def with_sampler(self, sampler_block: type[Kind], **changed: Any) -> Kind:
        """Return the block of another sampler with the same settings, apart from the changed ones."""
        values = vars(self) | {"sampler": sampler_block.sampler, **changed}
        return sampler_block(**{key.name: values[key.name] for key in fields(sampler_block)})

    @property
    def most_candidates(self) -> int | None:
        blocks = [block for block in self.members if isinstance(block, DrawnCandidates)]
        some_are_files = len(blocks) < len(self.members)
        if some_are_files:
            return None
        return sum(block.candidates_per_prompt for block in blocks)

    def check(self) -> None:
        if not self.temperatures:
            raise UserError("sample.temperatures is empty. Use [0.9].")
        pool = self.pool or []
        for i, member in enumerate(pool):
            key = f"sample.pool[{i}]"
            if member in pool[:i]:
                raise UserError(f"{key} repeats an earlier source. Leave it out.")
            member.check(key)
        can_fail = self.own or any(
            isinstance(block, OpenAI | CandidateFile) for block in self.members
        )
        if self.max_failed is not None and not can_fail:
            raise UserError(
                f"sample.max_failed={self.max_failed:g}: only an endpoint, a file or sample.own can fail. Leave it out."
            )


@dataclass
class HF(DrawnCandidates):
    """The policy itself, by transformers, with batches that are refilled."""

    sampler: str = computed("hf")


@dataclass
class Generate(DrawnCandidates):
    """The policy itself, by transformers' own `generate`."""

    sampler: str = computed("generate")


@dataclass
class VLLM(DrawnCandidates):
    """The policy itself, by vLLM in a child process."""

    sampler: str = computed("vllm")


@dataclass
class OpenAI(DrawnCandidates):
    """Another model, at an OpenAI-compatible server."""

    sampler: str = computed("openai")
    endpoint: Endpoint = field(default_factory=Endpoint)
    # share of candidates that may be missing
    max_failed: float | None = share(0.1)

    def check(self) -> None:
        super().check()
        if self.pool and self.endpoint != Endpoint():
            raise UserError(
                "sample.endpoint: the sources of sample.pool have their own. Leave it out."
            )


SAMPLERS: dict[str, type[DrawnCandidates]] = {
    "hf": HF,
    "generate": Generate,
    "vllm": VLLM,
    "openai": OpenAI,
}
SAMPLES: dict[str, type[Sample]] = {**SAMPLERS, "file": CandidateFile}
