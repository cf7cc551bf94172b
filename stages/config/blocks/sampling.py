"""How candidates are drawn, and from which sources."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from omegaconf import MISSING

from stages.config.blocks.data import Source
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.models import Own
from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision, Split
from stages.config.limits import Limit, between, computed, limited, random_seed, setting_name, share

OWN_PROMPTS = "file"  # the word for `sample.sampler` where nothing is drawn


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
class CandidateFile:
    """Candidates in a file, as a node reads them: nothing of it says how candidates are drawn. `own_prompts`: whether
    the file brings its prompts, or answers those of the data."""

    file: str
    columns: dict[str, Any]
    own_prompts: bool
    prompts: int | None
    rounds: int
    round: int
    max_failed: float | None
    of: str | None = setting_name()
    limits: Any = setting_name()  # ReadLimits, set by the pipeline from data.max_line and data.max_file

    @property
    def key(self) -> str:
        """What this block is called on the command line."""
        return self.of or "sample"

    @property
    def source(self) -> Source:
        """The file, as one that rows are read from."""
        return Source(self.file, columns=self.columns, limits=self.limits)


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
    max_dropped: float | None = share(None)
    of: str | None = setting_name()  # set by the pipeline: which key names it, where another than its own does
    runtime: InferenceRuntime = field(default_factory=InferenceRuntime)

    @property
    def key(self) -> str:
        """What this block is called on the command line."""
        return self.of or "sample"

    @property
    def drawn_by(self) -> str:
        """The block on the command line that says how candidates are drawn: demonstrations have one of their own."""
        return "select" if self.split is Split.sft else "sample"

    @property
    def brings_prompts(self) -> bool:
        """True where the candidates come with prompts of their own, so that no data is asked for any."""
        return self.sampler == OWN_PROMPTS

    @property
    def candidate_file(self) -> CandidateFile | None:
        """The file that the candidates are read from; None where they are drawn."""
        if not self.file:
            return None
        names = {key.name for key in fields(CandidateFile)} - {"own_prompts", "limits"}
        return CandidateFile(**{name: getattr(self, name) for name in names}, own_prompts=self.brings_prompts)

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
