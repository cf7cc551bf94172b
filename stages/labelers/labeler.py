"""The base class of labelers, which turn candidates into judgements, and the choice of candidates shown together."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

from stages.config.errors import UserError
from stages.evaluation.relative_scores import Gather, quantiles_over_prompts
from stages.evaluation.reliability import Key
from stages.formats.readers.row import Row
from stages.store.allowance import Allowance
from stages.store.judged_pool import TokenCount, column, group_by_prompt
from stages.store.records import Candidate, Example, Judgement, Records, content_id
from stages.store.user_columns import UserColumns
from stages.store.workspace import Progress

NO_COLUMNS = UserColumns()


class Pool(NamedTuple):
    """Prompts with their candidates. If the pool comes from a file: `bad` are its unusable rows, `unused` the columns
    not read (by file), `notes` lines that say how its columns were read, and `rows` the number of all rows. `columns`
    are the user's of the prompts, if the labeler reads them. `trainer_state` is TRL's, of the training that wrote the
    candidates. `gather` returns the items of all processes, if several judge the candidates of one step."""

    prompts: Sequence[Example] | Records[Example]
    candidates: Sequence[Candidate] | Records[Candidate]
    bad: Sequence[Row] = ()
    unused: Mapping[str, list[str]] = {}
    notes: Sequence[str] = ()
    rows: int = 0
    columns: UserColumns = NO_COLUMNS
    trainer_state: Any = None
    gather: Gather = list

    def by_prompt(self) -> Iterator[tuple[Example, list[Candidate]]]:
        """Yield each prompt with its candidates as they are judged, without their thoughts."""
        groups = group_by_prompt(self.candidates, [*column(self.prompts, "id")])
        for prompt, candidates in zip(self.prompts, groups, strict=True):
            yield prompt, [*map(without_thought, candidates)]

    def answers(self) -> Iterator[Candidate]:
        """Yield the candidates of all prompts as they are judged, without their thoughts."""
        return map(without_thought, self.candidates)

    def lengths_by_prompt(self) -> Iterator[dict[str, int]]:
        """Yield the lengths of each prompt's candidates in tokens, by id, without their thoughts. Neither texts nor
        token ids are read."""
        pool = self.candidates
        candidates: Any = Records(pool.path, TokenCount) if isinstance(pool, Records) else pool
        for drawn in group_by_prompt(candidates, [*column(self.prompts, "id")]):
            yield {c.candidate_id: c.length for c in drawn}


def without_thought(candidate: Candidate) -> Candidate:
    """Return a candidate as the answer behind its thought, with the length of that answer. Token ids and log-prob are
    those of the whole text, so the answer has none."""
    answer = candidate.answer
    if answer == candidate.text:
        return candidate
    return replace(candidate, text=answer, n_tokens=candidate.length, token_ids=None, logprob=None)


class Labeler(ABC):
    """A judge of candidates. Each file in this folder has one subclass; `label=NAME` is the name of the file, or
    of an extra with a `labeler.py`. A
    user-defined labeler (`label=own`) is constructed with the options of its block, and needs `name` and `judge`."""

    name: str  # written into every judgement
    learnt = False  # True: a learned reward, so the stage warns about signs of overoptimization
    # True: scores are known up to a constant of their prompt, so that 0 and 1 mean nothing by themselves
    relative = False
    # False: user-defined, and does not say whether its scores are relative
    says_relative = True
    # True: takes the user's columns of the prompts
    reads_columns = False
    # people's verdicts on the judgements that `label.audit` samples
    people_verdicts: Mapping[Key, str] = {}
    # True: judges two candidates at a time, so that one without a partner has no judgement to miss
    compares = False
    # the minutes that judging may take; stage=label sets them, and a training looks at its minutes after each step
    allowance = Allowance()
    # True: user-defined, so an exception skips one prompt; in a built-in labeler it stops the stage
    own = False

    def pool(self, inputs: dict[str, Path]) -> Pool:
        """Return the pool to judge: the sampled one, unless the labeler provides the candidates too."""
        folder = inputs["pool"]
        return Pool(
            Records(folder / "prompts.parquet", Example),
            Records(folder / "candidates.parquet", Candidate),
        )

    @abstractmethod
    def judge(self, prompt: Example, candidates: list[Candidate]) -> Iterable[Judgement]:
        """Return judgements of a prompt's candidates: a score in [0, 1] each, or preferences between two. A judgement
        that cannot be made has an `error`, and never the score 0."""

    def figures(self) -> dict[str, Any]:
        """Return further metrics of the labeler, after it has judged."""
        return {}

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements of completions that a model in training wrote; `score` is the reward, of any size."""
        return self.judge_all(pool)

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements of all prompts. Labelers that send many requests at once override this. If a user-defined
        labeler raises an exception on a prompt, its candidates get judgements with that error.
        Raise LimitReached if the time of the command is up before a prompt other than the first."""
        with Progress(len(pool.prompts), f"label {self.name}", "prompt") as progress:
            for prompt, candidates in pool.by_prompt():
                if progress.done:
                    counts = f"{progress.done:,} of {progress.total:,} prompts"
                    self.allowance.stop_if_late(f"in {progress.title} after {counts}, none kept")
                # User code gets copies, so that its changes cannot reach the sampled pool.
                arguments = deepcopy((prompt, candidates)) if self.own else (prompt, candidates)
                try:
                    judgements = list(self.judge(*arguments))
                except (Exception, SystemExit) as error:
                    if not self.own or isinstance(error, UserError | MemoryError):
                        raise
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    judgements = [
                        Judgement(prompt.id, self.name, c.candidate_id, error=reason)
                        for c in candidates
                    ]
                if self.own:  # the judgements to come may cost money
                    require_candidates(
                        judgements, prompt.id, {c.candidate_id for c in candidates}, self.name
                    )
                yield from judgements
                progress.update()


def require_candidates(
    judgements: Iterable[Judgement], prompt: str, ids: Container[str], name: str
) -> None:
    """Raise UserError if something is not a judgement of the prompt's candidates with these ids. `name`: labeler's."""
    for j in judgements:
        if not isinstance(j, Judgement):
            kind = type(j).__name__
            raise UserError(
                f"the labeler {name} yields a {kind}. Yield objects of the class Judgement."
            )
        judged = [j.candidate_id] if j.candidate_id is not None else [str(j.a), str(j.b)]
        if j.prompt_id != prompt or any(candidate not in ids for candidate in judged):
            problem = f"{', '.join(judged)}: not a candidate of prompt {j.prompt_id}"
            raise UserError(f"the labeler {name} judges {problem}. Use the given ids.")


def validate_judgement(j: Judgement, prompts: Container[str], labeler: str) -> Judgement:
    """Return a judgement unchanged. Raise UserError if its prompt, score, preference or error is invalid."""
    if j.prompt_id not in prompts:
        raise UserError(
            f"{labeler} judges prompt {j.prompt_id}, which is not in its pool. Use the given ids."
        )
    outcomes = [name for name in ("score", "preference", "error") if vars(j)[name] is not None]
    if len(outcomes) != 1:
        fields = " and ".join(outcomes) or "nothing"
        raise UserError(
            f"{labeler} sets {fields} in a judgement. Set exactly one of score, preference and error."
        )
    if j.score is not None and not (
        isinstance(j.score, Real) and j.candidate_id and 0 <= j.score <= 1
    ):
        raise UserError(
            f"{labeler} gives the score {j.score}. A score is a number from 0 to 1, of one candidate."
        )
    if j.preference is not None and (
        j.preference not in ("a", "b", "tie") or j.candidate_id or j.a == j.b
    ):
        raise UserError(
            f"{labeler} gives the preference {j.preference!r} for {j.a} and {j.b}. A preference is a, b or tie, "
            "between two different candidates."
        )
    return j


def hash_order(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Return the candidates ordered by a hash. Any subset of them has the same relative order."""
    return sorted(candidates, key=lambda c: content_id(seed, c.candidate_id))


def pair_up(
    candidates: Sequence[Candidate], limit: int | None, seed: int
) -> list[tuple[Candidate, Candidate]]:
    """Return the first `limit` pairs of a prompt's candidates (None: all), in an order that uses all evenly. The
    candidates form a circle. Pairs of neighbours come first, then pairs at distance two, and so on."""
    circle = hash_order(candidates, seed)
    count, pairs = len(circle), list[tuple[Candidate, Candidate]]()
    for gap in range(1, count // 2 + 1):
        starts = range(gap) if 2 * gap == count else [*range(0, count, 2), *range(1, count, 2)]
        pairs += [(circle[i], circle[(i + gap) % count]) for i in starts]
    return pairs[:limit]


def group_up(
    candidates: Sequence[Candidate], size: int, limit: int | None, seed: int
) -> list[tuple[Candidate, ...]]:
    """Return groups of `size` candidates, at most `limit`. Groups of two are those of `pair_up`; larger groups are
    neighbours in its circle. A last group that is too small gets one candidate from each of the groups before, so that
    no two candidates are shown together twice."""
    if size == 2:
        return [*pair_up(candidates, limit, seed)]
    circle = hash_order(candidates, seed)
    *full_groups, last_group = [
        circle[start : start + size] for start in range(0, len(circle), size)
    ]
    last_group += [group[0] for group in full_groups][: size - len(last_group)]
    return [tuple(group) for group in (*full_groups, last_group)][:limit]


def with_quantiles(judgements: Sequence[Judgement]) -> Iterator[Judgement]:
    """Yield judgements with the quantile of each reward within prompts as score, and the reward in `raw`."""
    rewards = {str(j.candidate_id): j.score for j in judgements if j.score is not None}
    prompt_of = {str(j.candidate_id): j.prompt_id for j in judgements}
    scores = quantiles_over_prompts(rewards, prompt_of)
    for j in judgements:
        if j.score is not None:
            j.raw = repr(j.score)
            j.score = scores[str(j.candidate_id)]
        yield j
