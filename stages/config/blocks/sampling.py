"""The block `sample`: the sources of candidates, and how a sampler draws them."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.choices import Precision, Split
from stages.config.limits import (
    Limit,
    between,
    computed,
    internal,
    limited,
    random_seed,
    share,
)

OWN_PROMPTS = "file"  # the `sample.sampler` that reads candidates and their prompts from a file


@dataclass
class Member:
    """One source of `sample.pool`: a model, an endpoint or a file. For a null key, the key of `sample` counts."""

    # policy (this round's), previous (the round before), sft, base, a folder or a hub id
    model: str | None = None
    endpoint: Endpoint = field(default_factory=Endpoint)  # a model at a server
    file: str | None = None  # a file or folder with candidates
    columns: dict[str, Any] = field(default_factory=dict)  # {ROLE: COLUMN} of that file
    sampler: str | None = None  # as sample.sampler
    temperature: float | None = between(0, 100, None)
    top_p: float | None = limited(
        Limit(0, "must be positive and at most 1", high=1, open=True), None
    )
    n: int | None = between(1, 10_000, None)  # candidates per prompt


@dataclass
class Pool:
    """The block of `stage=pool`, which joins sources of candidates: a name for each input after the policy."""

    members: list[str]


@dataclass
class CandidateFile:
    """The block of `stage=sample` that reads candidates from a file. It has no key of sampling, so these change no
    fingerprint. With `own_prompts` the file brings the prompts too; else its candidates answer prompts of the data."""

    file: str
    columns: dict[str, Any]
    own_prompts: bool
    prompts: int | None
    prompts_per_round: int | None
    rounds: int
    round: int
    max_failed: float | None
    key: str = internal("sample")  # the setting that holds this block
    limits: Any = internal()  # ReadLimits, set by the pipeline from data.max_line and data.max_file
    turns: str | None = computed(None)  # set by the pipeline from data.form.turns

    @property
    def source(self) -> Source:
        """The file as a source of rows."""
        return Source(self.file, columns=self.columns, limits=self.limits, turns=self.turns)


@dataclass
class Sample:
    """The candidates for each prompt, and the sampler that draws them or the file that holds them."""

    sampler: str = MISSING
    own: Own = field(default_factory=Own)
    prompts: int | None = between(1, 1_000_000_000)
    prompts_per_round: int | None = between(1, 1_000_000_000)
    candidates_per_prompt: int = between(1, 10_000)
    temperatures: list[float] = between(0, 100)
    top_p: float = limited(Limit(0, "must be positive and at most 1", high=1, open=True))
    max_new_tokens: int = between(1, 65_536)
    precision: Precision = MISSING
    seed: int = random_seed()
    rounds: int = between(1, 100)
    # set by the pipeline: the round of DPO, which samples its share of the prompts
    round: int = computed(0)
    # set by the pipeline: the split of the prompts; null: preference
    split: Split | None = computed(None)
    endpoint: Endpoint = field(default_factory=Endpoint)
    file: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    pool: list[Member] | None = None
    max_failed: float | None = share(None)
    max_dropped: float | None = share(None)
    key: str = internal("sample")  # the setting that holds this block: the pipeline sets any other
    runtime: SamplingRuntime = field(default_factory=SamplingRuntime)

    @property
    def drawn_by(self) -> str:
        """The block on the command line with the keys of sampling: `select` for demonstrations, else `sample`."""
        return "select" if self.split is Split.sft else "sample"

    @property
    def brings_prompts(self) -> bool:
        """True if the file with candidates holds their prompts too, so that the data is not needed."""
        return self.sampler == OWN_PROMPTS

    @property
    def candidate_file(self) -> CandidateFile | None:
        """The block of the file that holds the candidates; None if a sampler draws them."""
        if not self.file:
            return None
        names = {key.name for key in fields(CandidateFile)} - {"own_prompts", "limits", "turns"}
        return CandidateFile(
            **{name: getattr(self, name) for name in names}, own_prompts=self.brings_prompts
        )

    @property
    def members(self) -> list["Sample"]:
        """The block of each source of the pool; without a pool, this block alone."""
        return (
            [self.member(i, member) for i, member in enumerate(self.pool)] if self.pool else [self]
        )

    def member(self, i: int, member: Member) -> "Sample":
        sampler = member.sampler or ("openai" if member.endpoint != Endpoint() else self.sampler)
        own = self.own if sampler == self.sampler and not member.file else Own()
        return replace(
            self,
            pool=None,
            key=f"sample.pool[{i}]",
            sampler=sampler,
            own=own,
            # no others can fail
            max_failed=self.max_failed if own or member.file or sampler == "openai" else None,
            candidates_per_prompt=member.n or self.candidates_per_prompt,
            temperatures=self.temperatures if member.temperature is None else [member.temperature],
            top_p=member.top_p or self.top_p,
            endpoint=member.endpoint,
            file=member.file,
            columns=member.columns,
        )

    @property
    def most(self) -> int | None:
        """The most candidates of a prompt; None if a file may hold any number."""
        blocks = self.members
        if any(block.file for block in blocks):
            return None
        return sum(block.candidates_per_prompt for block in blocks)
