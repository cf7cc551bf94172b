"""The protocol of labelers, which turn candidates into judgements, and which candidates are shown together."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.blocks.labels import Label
from stages.config.errors import UserError
from stages.evaluation.reliability import Key
from stages.formats.readers.row import Row
from stages.store import plugins
from stages.store.judged_pool import by_prompt, column
from stages.store.records import Candidate, Example, Judgement, Records, content_id
from stages.store.workspace import Progress, StageDir


class Pool(NamedTuple):
    """Prompts with their candidates; of a file also how many `rows` it has, those that could not be read as such,
    columns not read, and a line of what was read as what."""

    prompts: Sequence[Example] | Records[Example]
    candidates: Sequence[Candidate] | Records[Candidate]
    bad: Sequence[Row] = ()
    unused: Mapping[str, list[str]] = {}
    notes: Sequence[str] = ()
    rows: int = 0

    def by_prompt(self) -> Iterator[tuple[Example, list[Candidate]]]:
        return zip(self.prompts, by_prompt(self.candidates, column(self.prompts, "id")), strict=True)


class Labeler(ABC):
    """Judges candidates. A labeler is a file in this folder with one such class; `label.labeler` is the file's name.

    One of the user's own (`label.own`) is made with its options and needs `name` and `judge`.
    """

    name: str  # stands in every judgement
    learnt = False  # its scores were learnt, and may be won without a better answer: they are watched
    people_verdicts: Mapping[Key, str] = {}  # what people said of the judgements that are set aside by `label.audit`
    own = False  # the user's: an error on a prompt costs that prompt, ours are bugs and stop the stage

    @classmethod
    def of(cls, cfg: Label, out: StageDir) -> "Labeler":
        """The labeler that a block asks for; `out` is where one that asks others keeps what they say."""
        return cls()

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """What is to be judged: the pool that was sampled, unless the labeler brings one of its own."""
        folder = inputs["pool"]
        return Pool(Records(folder / "prompts.parquet", Example), Records(folder / "candidates.parquet", Candidate))

    @abstractmethod
    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        """Judgements of a prompt's candidates: a score in [0, 1] each, or which of two is better. One that cannot be
        made is missing, with its error: never a zero."""

    def figures(self) -> dict[str, Any]:
        """What it found besides its judgements, once they are made: for the node's metrics."""
        return {}

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Judgements of every prompt's candidates. Whoever asks others, and may ask for several at once, does it here.

        A prompt on which a labeler of the user's fails has its candidates missing, with that error.
        """
        with Progress(len(pool.prompts), f"label {self.name}", "prompt") as progress:
            for prompt, candidates in pool.by_prompt():
                # The user's code gets copies: what it changes in them is not what was sampled.
                arguments = deepcopy((prompt, candidates)) if self.own else (prompt, candidates)
                try:
                    judgements = list(self.judge(*arguments))
                except (Exception, SystemExit) as error:
                    if not self.own or isinstance(error, UserError | MemoryError):
                        raise
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    judgements = [Judgement(prompt.id, self.name, c.candidate_id, error=reason) for c in candidates]
                yield from judgements
                progress.update()


def make_labeler(cfg: Label, out: StageDir) -> Labeler:
    """The labeler that `label` names: a file of this folder, or the user's own.

    Raises:
        UserError: where the user's own cannot be loaded or is no labeler.
    """
    if not cfg.own:
        return plugins.named("labelers", cfg.labeler, Labeler).of(cfg, out)  # type: ignore[type-abstract]
    labeler = plugins.make(cfg.own, "label.own", out.path, Labeler)  # type: ignore[type-abstract]
    labeler.own = True
    return labeler


def hash_order(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """The candidates in an order drawn by a hash: a subset of them comes in the same order."""
    return sorted(candidates, key=lambda c: content_id(seed, c.candidate_id))


def pair_up(candidates: Sequence[Candidate], limit: int | None, seed: int) -> list[tuple[Candidate, Candidate]]:
    """Two candidates of a prompt at a time: all such pairs, or the first `most` of an order in which every candidate
    comes before any comes much more often: neighbours in a circle, then those two apart, and so on."""
    circle = hash_order(candidates, seed)
    count, pairs = len(circle), list[tuple[Candidate, Candidate]]()
    for gap in range(1, count // 2 + 1):
        starts = range(gap) if 2 * gap == count else [*range(0, count, 2), *range(1, count, 2)]
        pairs += [(circle[i], circle[(i + gap) % count]) for i in starts]
    return pairs[:limit]


def group_up(
    candidates: Sequence[Candidate], size: int, limit: int | None, seed: int
) -> Sequence[tuple[Candidate, ...]]:
    """Return `size` candidates at a time: of two, as `compared`; of more, neighbours in the circle. What fills up the
    last group is one candidate of each group before it, so that no two candidates are shown together twice."""
    if size == 2:
        return pair_up(candidates, limit, seed)
    circle = hash_order(candidates, seed)
    *full_groups, last_group = [circle[start : start + size] for start in range(0, len(circle), size)]
    last_group += [group[0] for group in full_groups][: size - len(last_group)]
    return [tuple(group) for group in (*full_groups, last_group)][:limit]
