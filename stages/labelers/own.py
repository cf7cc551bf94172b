"""`label=own`: the user's labeler. It is a class derived from Labeler, or a reward function as TRL's online trainers
take it: `def reward(prompts, completions, **columns) -> list[float]`. It takes the user's columns of the prompts' file, too."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.config.blocks.labels import OwnLabeler
from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.labelers.labeler import NO_COLUMNS, Labeler, Pool, with_quantiles
from stages.store import plugins
from stages.store.records import Candidate, Example, Judgement, prompt_id
from stages.store.user_columns import UserColumns
from stages.store.workspace import StageDir

NOT_APPLICABLE = "the reward is None"
STATE = "trainer_state"  # the argument that has TRL's state of the training
# Prompt, reference answer and completions of the rows on which a function is tried. Two rows of different sizes show a
# function that returns the same number of rewards for every prompt.
MADE_UP = (
    ("What is 2 and 3?", "5", ["5", "7"]),
    ("What is 40 less 10?", "30", ["30", "3", "It is 30."]),
)


class RewardFunction(Labeler):
    """Scores candidates by a reward function, which is called once for each prompt with all its candidates."""

    def __init__(self, cfg: OwnLabeler, function: Callable[..., Any], out: StageDir):
        own = cfg.own
        self.name, self.function, self.options = str(own.name), function, own.options
        self.cfg, self.out = cfg, out
        self.reads_columns = takes_columns(own, function)
        self.says_relative = hasattr(function, "relative")
        self.relative = relative_of(cfg, function)
        self.columns = NO_COLUMNS
        self.trainer_state: Any = None
        self.passed = list[str]()  # the names of the arguments; `read_pool` sets them
        self.runner = asyncio.Runner()  # one event loop for all calls of an async function

    def read_pool(self, pool: Pool) -> None:
        """Take the columns of the pool's prompts, and the state of the training that wrote its candidates.
        Raise UserError if the function needs an argument that the pool does not have."""
        self.columns = pool.columns
        self.passed = accepted_names(self.cfg, self.function, pool.columns)
        if STATE in self.passed:
            # a copy, for the function's changes must not reach the training
            self.trainer_state = deepcopy(pool.trainer_state) or state_before_training()

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
        available = arguments_of(prompt, candidates, self.columns.of(prompt.id))
        # The function gets copies, so that its changes cannot reach the sampled pool.
        arguments = deepcopy({name: available[name] for name in self.passed if name in available})
        if STATE in self.passed:
            arguments[STATE] = self.trainer_state
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
        return UserError(
            f'{self.cfg.own_key}: {self.name} {problem} (prompt "{prompt.opening}"). {way_out}'
        )

    def reason(self, error: BaseException) -> str:
        """Return an error of the function with its line in the file."""
        line = plugins.line_of(error, self.out / plugins.COPY)
        where = f"line {line}: " if line else ""
        return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"

    def judge_all(self, pool: Pool) -> Iterator[Judgement]:
        """Yield judgements with scores from 0 to 1. If a reward of the pool is outside of that, all are scaled, the
        lowest to 0 and the highest to 1, and `raw` has the rewards. A relative reward's score is its quantile within
        prompts, as a reward model's."""
        self.read_pool(pool)
        judgements = [*super().judge_all(pool)]
        if self.relative:
            yield from with_quantiles(judgements)
            return
        rewards = [j.score for j in judgements if j.score is not None]
        low, high = min(rewards, default=0.0), max(rewards, default=0.0)
        if not 0 <= low <= high <= 1:
            self.out.inform(
                f"{self.cfg.own_key}: rewards from {low:g} to {high:g} are scaled to scores from 0 to 1."
            )
            for j in judgements:
                if j.score is not None:
                    j.raw = repr(j.score)
                    j.score = (j.score - low) / ((high - low) or 1.0)
        yield from judgements

    def judge_rollouts(self, pool: Pool) -> Iterator[Judgement]:
        self.read_pool(pool)
        return super().judge_all(pool)


def relative_question(key: str, name: str, judgements: Iterable[Judgement]) -> str:
    """Return a line that asks whether the user's scores are relative; '' if all are 0 or 1, so that 0 is the worst."""
    if {j.score for j in judgements} <= {0, 1, None}:
        return ""
    question = f"{key}: the scores of {name} are not all 0 or 1, and it does not say whether they are relative"
    ways = "Write relative = False if 0 is a bad score, or True if scores only compare answers to one prompt"
    return f"{question}. {ways}: in a class, or {name}.relative = False below a function."


def state_before_training() -> Any:
    """Return TRL's state where nothing is trained: step 0 of 1."""
    from transformers import TrainerState  # takes seconds, and few functions read the state

    return TrainerState(epoch=0.0, max_steps=1)


def takes_columns(own: Own, function: Callable[..., Any]) -> bool:
    """Return whether a reward function takes arguments that may be columns of the user's."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD or name not in {*BUILT_IN, *own.options}:
            return True
    return False


def relative_of(cfg: OwnLabeler, function: Callable[..., Any]) -> bool:
    """Return what a function says of its rewards; False if it says nothing. Raise UserError for another value."""
    relative = getattr(function, "relative", False)
    if not isinstance(relative, bool):
        raise UserError(
            f"{cfg.own_key}.name={cfg.own.name}: relative is {relative!r:.40}. Write {cfg.own.name}.relative = True, or "
            "False."
        )
    return relative


def arguments_of(
    prompt: Example, candidates: Sequence[Candidate], user_columns: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return what a reward function may take by name, with an entry per candidate, as TRL repeats its columns. A column
    of the user's replaces ours of the same name, as `task` and `source`."""
    columns: dict[str, Any] = {
        "answer": prompt.reference,
        "reference": prompt.reference,
        "task": prompt.task,
        "source": prompt.source,
        "checks": [vars(check) for check in prompt.checks],
        **user_columns,
        "id": prompt.id,
        "prompts": prompt.messages,
    }
    of_completions: dict[str, list[Any]] = {
        "completions": [candidate.messages for candidate in candidates],
        "completion_ids": [candidate.token_ids for candidate in candidates],
    }
    return {name: [value] * len(candidates) for name, value in columns.items()} | of_completions


BUILT_IN = (*arguments_of(Example("", [], None, "", "", ""), [], {}), STATE)


def accepted_names(
    cfg: OwnLabeler, function: Callable[..., Any], user_columns: UserColumns
) -> list[str]:
    """Return the names of the arguments that a reward function takes.
    Raise UserError if it needs others, or does not accept the options."""
    options = cfg.own.options
    names = [*dict.fromkeys([*BUILT_IN, *user_columns.names])]
    signature = inspect.signature(function)
    takes_all = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    passed = [
        name
        for name in names
        if (takes_all or name in signature.parameters) and (name in BUILT_IN or name not in options)
    ]
    try:
        signature.bind(**dict.fromkeys(passed), **options)
    except TypeError as error:
        available = f"A reward function may take {', '.join(names)}"
        way_out = user_columns.lacking_message or f"{cfg.own_key}.options sets other arguments."
        argument = f"{cfg.own_key}.name={cfg.own.name}"
        raise UserError(f"{argument}: {error}. {available}. {way_out}") from error
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


def load_user_code(cfg: OwnLabeler, node: Path) -> Any:
    """Return the user's class or function. Raise UserError if it is neither, or does not accept its arguments."""
    own, key = cfg.own, cfg.own_key
    loaded = plugins.run_file(own, key, node)
    if callable(loaded) and not isinstance(loaded, type):
        return loaded
    user_class = plugins.require_subclass(own, key, loaded, Labeler, ", or a reward function")  # type: ignore[type-abstract]
    plugins.require_options(own, key, inspect.signature(user_class))
    return user_class


def make_own_labeler(cfg: OwnLabeler, out: StageDir) -> Labeler:
    """Return the user's labeler. Raise UserError if it cannot be loaded."""
    loaded = load_user_code(cfg, out.path)
    if not isinstance(loaded, type):
        return RewardFunction(cfg, loaded, out)
    with plugins.explain_errors(cfg.own, cfg.own_key, out.path):
        labeler: Labeler = loaded(**cfg.own.options)
    labeler.own = True
    labeler.says_relative = "relative" in vars(labeler) or says_relative(loaded)
    return labeler


def says_relative(user_class: type[Labeler]) -> bool:
    """Return whether a class, or one between it and `Labeler`, says whether its scores are relative."""
    derived = user_class.__mro__[: user_class.__mro__.index(Labeler)]
    return any("relative" in vars(each) for each in derived)


def try_own_labeler(cfg: OwnLabeler, columns: UserColumns | None) -> None:
    """Load the user's code, and call a reward function on made-up rows with the user's columns of one row; not if it
    needs columns that are unknown (None). A class is not constructed, as it may load a model.
    Raise UserError for what would stop the stage that needs the labeler."""
    with TemporaryDirectory() as folder:
        out = StageDir(Path(folder), lambda metrics, step: None)
        loaded = load_user_code(cfg, out.path)
        if isinstance(loaded, type):
            return
        function = RewardFunction(cfg, loaded, out)
        try:
            function.read_pool(Pool([], [], columns=columns or NO_COLUMNS))
        except UserError:
            if columns is None:
                return
            raise
        for prompt, candidates in made_up_rows():
            errors = {j.error for j in function.judge(prompt, candidates)} - {None, NOT_APPLICABLE}
            if errors:
                problem = f'was tried on the made-up prompt "{prompt.opening}": {errors.pop()}'
                way_out = (
                    "A completion is [{'role': 'assistant', 'content': TEXT}], and its reward a finite number, or None "
                    "where the function does not apply."
                )
                raise UserError(f"{cfg.own_key}: {cfg.own.name} {problem}. {way_out}")
