"""`label=own`: the user's labeler. It is a class derived from Labeler, or a reward function as TRL's GRPOTrainer takes
it: `def reward(prompts, completions, **columns) -> list[float]`."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.labelers.labeler import Labeler, Pool
from stages.store import plugins
from stages.store.records import Candidate, Example, Judgement, prompt_id
from stages.store.workspace import StageDir

KEY = "label.own"
NOT_APPLICABLE = "the reward is None"
# Prompt, reference answer and completions of the rows on which a function is tried. Two rows of different sizes show a
# function that returns the same number of rewards for every prompt.
MADE_UP = (
    ("What is 2 and 3?", "5", ["5", "7"]),
    ("What is 40 less 10?", "30", ["30", "3", "It is 30."]),
)


class RewardFunction(Labeler):
    """Scores candidates by a reward function, which is called once for each prompt with all its candidates."""

    def __init__(self, own: Own, function: Callable[..., Any], out: StageDir):
        self.name, self.function, self.options = str(own.name), function, own.options
        self.passed, self.out = accepted_names(own, function), out
        self.runner = asyncio.Runner()  # one event loop for all calls of an async function

    def judge(self, prompt: Example, candidates: list[Candidate]) -> list[Judgement]:
        """Return a judgement per candidate, whose score is the reward, of any size. If the function raises an error, or
        a reward is None or not finite, the candidate gets an error instead.
        Raise UserError if the function does not return a list with a number or None for each candidate."""
        judgement = partial(Judgement, prompt.id, self.name)
        try:
            rewards = self.rewards(prompt, candidates)
        except (UserError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            reason = self.reason(error)
            return [judgement(c.candidate_id, error=reason) for c in candidates]
        judgements = []
        for candidate, reward in zip(candidates, rewards, strict=True):
            is_finite = reward is not None and isfinite(reward)
            problem = NOT_APPLICABLE if reward is None else f"the reward is {reward}"
            judgements.append(
                judgement(
                    candidate.candidate_id,
                    score=reward if is_finite else None,
                    error=None if is_finite else problem,
                )
            )
        return judgements

    def rewards(self, prompt: Example, candidates: list[Candidate]) -> list[float | None]:
        """Return the function's reward of each candidate; None means that it does not apply."""
        available = arguments_of(prompt, candidates)
        # The function gets copies, so that its changes cannot reach the sampled pool.
        arguments = deepcopy({name: available[name] for name in self.passed})
        result = self.function(**arguments, **self.options)
        if inspect.iscoroutine(result):
            result = self.runner.run(result)
        if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
            raise self.result_error(prompt, f"returns {result!r:.40}")
        rewards = [*result]
        if len(rewards) != len(candidates):
            count = f"{len(rewards)} rewards for {len(candidates)} completions"
            raise self.result_error(prompt, f"returns {count}")
        return [reward if reward is None else self.number(prompt, reward) for reward in rewards]

    def number(self, prompt: Example, reward: Any) -> float:
        """Return a reward as a float, also if it is a scalar of numpy or torch."""
        if isinstance(reward, str | bytes):
            raise self.result_error(prompt, f"returns the text {reward!r:.40} as a reward")
        try:
            return float(reward)
        except Exception as error:
            raise self.result_error(prompt, f"returns {reward!r:.40} as a reward") from error

    def result_error(self, prompt: Example, problem: str) -> UserError:
        way_out = "Return a list with one number, or None, for each completion."
        return UserError(f'{KEY}: {self.name} {problem} (prompt "{prompt.opening}"). {way_out}')

    def reason(self, error: BaseException) -> str:
        """Return an error of the function with its line in the file."""
        line = plugins.line_of(error, self.out / plugins.COPY)
        where = f"line {line}: " if line else ""
        return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements with scores from 0 to 1. If a reward of the pool is outside of that, all are scaled, the
        lowest to 0 and the highest to 1, and `raw` has the rewards."""
        judgements = [*super().judge_all(pool)]
        rewards = [j.score for j in judgements if j.score is not None]
        low, high = min(rewards, default=0.0), max(rewards, default=0.0)
        if not 0 <= low <= high <= 1:
            self.out.inform(
                f"{KEY}: rewards from {low:g} to {high:g} are scaled to scores from 0 to 1."
            )
            for j in judgements:
                if j.score is not None:
                    j.raw = repr(j.score)
                    j.score = (j.score - low) / ((high - low) or 1.0)
        yield from judgements

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        return super().judge_all(pool)


def arguments_of(prompt: Example, candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
    """Return what a reward function may take by name, with an entry per candidate, as TRL repeats its columns."""
    columns: dict[str, Any] = {
        "prompts": prompt.messages,
        "answer": prompt.reference,
        "reference": prompt.reference,
        "task": prompt.task,
        "source": prompt.source,
        "checks": [vars(check) for check in prompt.checks],
        "id": prompt.id,
    }
    of_completions: dict[str, list[Any]] = {
        "completions": [candidate.messages for candidate in candidates],
        "completion_ids": [candidate.token_ids for candidate in candidates],
    }
    return {name: [value] * len(candidates) for name, value in columns.items()} | of_completions


def accepted_names(own: Own, function: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a reward function takes.
    Raise UserError if it needs others, or does not accept the options."""
    names = [*arguments_of(*made_up_rows()[0])]
    signature = inspect.signature(function)
    takes_all = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    passed = [name for name in names if takes_all or name in signature.parameters]
    try:
        signature.bind(**dict.fromkeys(passed), **own.options)
    except TypeError as error:
        available = f"A reward function may take {', '.join(names)}"
        raise UserError(
            f"{KEY}.name={own.name}: {error}. {available}; {KEY}.options sets other arguments."
        ) from error
    return passed


def made_up_rows() -> list[tuple[Example, list[Candidate]]]:
    """Return two short questions with a reference answer and completions."""
    rows = []
    for question, answer, completions in MADE_UP:
        messages = [{"role": "user", "content": question}]
        prompt = Example(prompt_id(messages), messages, answer, "made up", "made up", "train")
        candidates = [
            Candidate.from_text(prompt.id, text, "made up", "made up", 1) for text in completions
        ]
        rows.append((prompt, candidates))
    return rows


def load_user_code(own: Own, node: Path) -> Any:
    """Return the user's class or function. Raise UserError if it is neither, or does not accept its arguments."""
    loaded = plugins.run_file(own, KEY, node)
    if callable(loaded) and not isinstance(loaded, type):
        return loaded
    user_class = plugins.require_subclass(own, KEY, loaded, Labeler, ", or a reward function")  # type: ignore[type-abstract]
    plugins.require_options(own, KEY, inspect.signature(user_class))
    return user_class


def make_own_labeler(own: Own, out: StageDir) -> Labeler:
    """Return the user's labeler. Raise UserError if it cannot be loaded."""
    loaded = load_user_code(own, out.path)
    if not isinstance(loaded, type):
        return RewardFunction(own, loaded, out)
    with plugins.explain_errors(own, KEY, out.path):
        labeler: Labeler = loaded(**own.options)
    labeler.own = True
    return labeler


def try_own_labeler(own: Own) -> None:
    """Load the user's code, and call a reward function on made-up rows. A class is not constructed, as it may load a
    model. Raise UserError for what would stop the stage that needs the labeler."""
    with TemporaryDirectory() as folder:
        out = StageDir(Path(folder), lambda metrics, step: None)
        loaded = load_user_code(own, out.path)
        if isinstance(loaded, type):
            return
        function = RewardFunction(own, loaded, out)
        for prompt, candidates in made_up_rows():
            errors = {j.error for j in function.judge(prompt, candidates)} - {None, NOT_APPLICABLE}
            if errors:
                problem = f'was tried on the made-up prompt "{prompt.opening}": {errors.pop()}'
                way_out = (
                    "A completion is [{'role': 'assistant', 'content': TEXT}], and its reward a finite number, or None "
                    "where the function does not apply."
                )
                raise UserError(f"{KEY}: {own.name} {problem}. {way_out}")
