"""Coverage: does one of several drawn answers pass, and how many of them differ? (`answer.samples`)

Training may raise the rate of greedy answers and lower what a model can do in k tries. pass@k is the unbiased estimate of
the chance that at least one of k draws passes, from n draws of a prompt of which c pass: 1 - C(n-c, k) / C(n, k)
(Chen et al. 2021, arXiv:2107.03374, Eq. 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.evaluation.asked import PROMPT_SOURCES
from stages.evaluation.outcomes import Table, means_and_differences
from stages.evaluation.results import Rates, Results
from stages.store.records import Candidate, Example, stream
from stages.store.typed_json import decode
from stages.tasks.checks import share_passed

SECTION = "coverage"  # of an evaluation's results
SAMPLES = "samples.parquet"  # in a node of answers, beside the greedy ones


@dataclass(frozen=True)
class Distinct:
    """By role, the mean number of different texts among a prompt's draws."""

    prompts: int
    by_role: dict[str, float]


@dataclass(frozen=True)
class Coverage:
    """`draws` of each prompt at a `temperature`. `passes`: the rates pass@k by k, on the prompts of the endpoint, and
    `greedy`: the rate of greedy answers to the same prompts, None without an endpoint. `distinct`: by set of prompts."""

    draws: int
    temperature: float
    greedy: Rates | None
    passes: dict[str, Rates]
    distinct: dict[str, Distinct]


@dataclass
class PromptDraws:
    """The draws of one model for one prompt: how many pass, and their texts."""

    passed: int
    texts: list[str]


Draws = dict[str, dict[str, PromptDraws]]  # by role, then by prompt id


def coverage_of(results: Results) -> Coverage | None:
    """Return an evaluation's coverage, None if nothing was drawn."""
    if SECTION not in results.sections:
        return None
    return decode(Coverage, results.sections[SECTION])


def pass_at(k: int, draws: int, passed: int) -> float:
    """Return the unbiased estimate of the chance that one of k draws passes, from `draws` of which `passed` do."""
    return 1 - comb(draws - passed, k) / comb(draws, k)


def tries(draws: int) -> list[int]:
    """Return the numbers of tries that are reported: powers of two, and all draws."""
    powers = [2**i for i in range(draws.bit_length())]
    return sorted({*powers, draws})


def measure_coverage(
    cfg: Eval, inputs: Mapping[str, Path], tables: Mapping[str, Table], endpoint: str | None
) -> Coverage | None:
    """Return the coverage of all models, None if nothing was drawn. `tables`: prompts by the title of their set, of which
    the prompts of `endpoint` have checks."""
    prompts = {prompt.id: prompt for table in tables.values() for prompt in table.prompts}
    draws, temperature = read_draws(cfg, inputs, prompts)
    counts = {len(each.texts) for of_role in draws.values() for each in of_role.values()}
    if not counts:
        return None
    count = max(counts)
    drawn = {title: drawn_by_all(table, draws, count) for title, table in tables.items()}
    distinct = {
        title: count_distinct(table, draws) for title, table in drawn.items() if table.prompts
    }
    greedy = None
    passes = dict[str, Rates]()
    if endpoint and drawn[endpoint].prompts:
        table = drawn[endpoint]
        greedy = rates(table, table.passed, cfg)
        for k in tries(count):
            passes[str(k)] = rates(table, pass_rates(table, draws, k), cfg)
    return Coverage(count, temperature, greedy, passes, distinct)


def read_draws(
    cfg: Eval, inputs: Mapping[str, Path], prompts: Mapping[str, Example]
) -> tuple[Draws, float]:
    """Return each model's draws for these prompts, and their temperature. One row at a time is in memory."""
    draws = Draws()
    temperature = 0.0
    for role in cfg.models:
        draws[role] = {}
        for name in PROMPT_SOURCES:
            file = inputs.get(f"{name}_{role}", Path()) / SAMPLES
            if not file.exists():
                continue
            for candidate in stream(file, Candidate):
                prompt = prompts.get(candidate.prompt_id)
                if prompt is None:
                    continue
                temperature = candidate.temperature
                of_prompt = draws[role].setdefault(prompt.id, PromptDraws(0, []))
                of_prompt.texts.append(candidate.answer.strip())
                if prompt.checks:
                    of_prompt.passed += share_passed(prompt.checks, candidate.answer) == 1
    return draws, temperature


def drawn_by_all(table: Table, draws: Draws, count: int) -> Table:
    """Return the prompts of a table that every model drew `count` answers for."""
    return table.where(
        np.array(
            [
                all(
                    e.id in draws[role] and len(draws[role][e.id].texts) == count
                    for role in table.roles
                )
                for e in table.prompts
            ],
            bool,
        )
    )


def pass_rates(table: Table, draws: Draws, k: int) -> NDArray[np.float64]:
    """Return pass@k of every prompt and model: (prompts, models)."""
    rows = list[list[float]]()
    for prompt in table.prompts:
        of_models = [draws[role][prompt.id] for role in table.roles]
        rows.append([pass_at(k, len(each.texts), each.passed) for each in of_models])
    return np.array(rows)


def rates(table: Table, values: NDArray[np.float64], cfg: Eval) -> Rates:
    """Return the mean of every model, and the paired differences, with intervals."""
    means = table.estimate(values)
    return Rates(len(table.prompts), means_and_differences(means, table.roles, cfg.confidence))


def count_distinct(table: Table, draws: Draws) -> Distinct:
    """Return the mean number of different texts among a prompt's draws, by role."""
    by_role = dict[str, float]()
    for role in table.roles:
        by_role[role] = fmean(len({*draws[role][e.id].texts}) for e in table.prompts)
    return Distinct(len(table.prompts), by_role)
