"""Check that a recipe applies whole or not at all, that what is typed wins, and that nothing else moves."""

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from stages.cli import recipe_layers, recipes, starting_values
from stages.cli.explain import explain
from stages.cli.resolve import fit_micro_batches
from stages.cli.typed_line import job_line, line_of_process, read_values
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.config.schema import RECIPES
from stages.store import sealed_json
from tests.helpers import (
    as_typed,
    composed,
    composed_by_hydra,
    for_hydra,
    forget_compositions,
    refused,
    settings,
    settings_by_key,
)

NAMES = sorted(path.stem for path in recipe_layers.built_in_recipes())
OPTIONS = {
    str(folder.relative_to(ROOT / "conf")): sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in (ROOT / "conf").rglob("*/")
    if folder.name not in ("scale", "conf")
}
OTHER = "model.path=someone/other"
SOURCE = "data.sources=[{path: x.jsonl}]"


def keys_of(*overrides: str) -> dict[str, Any]:
    """Return every key of a configuration with its value, with interpolations unresolved."""
    return settings_by_key(composed(*overrides), resolve=False)


def recipe_keys(name: str) -> dict[str, Any]:
    """Return the keys of a recipe, those of the recipes that it is based on among them."""
    recipe = settings_by_key(recipe_layers.load_recipes(name)[name], resolve=False)
    return {key: value for key, value in recipe.items() if not key.startswith("defaults")}


def every_recipe_but(*quick: str, alike: Collection[str] = ()) -> list[Any]:
    """Return all recipes. Those that are not quick are for `make test-all`, and those that are `alike` for `make slow`."""
    marks = {name: pytest.mark.slow if name in alike else pytest.mark.extended for name in NAMES}
    return [name if name in quick else pytest.param(name, marks=marks[name]) for name in NAMES]


# Recipes that name the groups of another one: of other models, and of own prompts
ALIKE = (
    "examine",
    "smollm2_360m",
    "zephyr_7b",
    "zephyr_7b_dpo",
    "own_reward",
    "rejection_sampling",
)


@pytest.mark.parametrize("name", every_recipe_but(alike=ALIKE))
def test_a_typed_option_changes_nothing_but_its_group(name: str) -> None:
    """Inside the group, the recipe's keys stand on top of the option's. A mixture of contents is refused."""
    plain = keys_of(f"recipe={name}")
    stated = recipe_keys(name)
    for group, options in OPTIONS.items():
        blocks = recipe_layers.blocks_of_group(group)
        for option in options:
            try:
                typed = keys_of(f"recipe={name}", f"{group}={option}")
            except (UserError, HydraException) as error:
                refusal = str(explain(error))
                assert group in recipes.KEYS_OF_ONE_OPTION and f"{group}={option}" in refusal
                continue
            alone = keys_of("recipe=none", f"{group}={option}")
            for key in plain.keys() | typed.keys():
                in_group = any(f"{key}.".startswith(f"{block}.") for block in blocks)
                if (option, key.partition(".")[0]) == ("dataset", "pairs"):
                    continue  # label=dataset adds pairs=all, which the recorded command states
                if f"{group} {key}".startswith(("sft sft.template.", "eval eval.judged.")):
                    continue  # of the groups template and eval/judged
                if not in_group:
                    assert typed.get(key) == plain.get(key), (f"{group}={option}", key)
                elif key in stated:  # an option may not have the key
                    assert typed.get(key, plain[key]) == plain[key], (f"{group}={option}", key)
                elif key in alone:
                    assert typed[key] == alone[key], (f"{group}={option}", key)


@pytest.mark.parametrize("name", every_recipe_but("tiny", alike=ALIKE))
def test_a_key_typed_with_the_recipes_own_value_changes_nothing(name: str) -> None:
    line = f"recipe={name}"
    plain = keys_of(line)
    for key, value in recipe_keys(name).items():
        text = json.dumps(value).replace('"', "")
        typed = composed_by_hydra(*for_hydra(line, f"{key}={text}"))
        changed = {k for k, v in settings_by_key(typed, False).items() if plain.get(k) != v}
        assert changed <= {key}, key


@pytest.mark.parametrize(
    ("line", "content"),
    [
        ((), None),
        (("dpo.beta=0.05", "pairs=random", "sft=default", "label.audit=20"), None),
        (("sample=vllm", "data.tasks.preference=200", "eval/judged=own"), None),
        ((SOURCE,), "data.sources"),
        (("data.sources=[]", "label.path=null"), None),
        (("label=judge,verifier", "-m"), "label=judge,verifier"),
        (("sample=file", "sample.file=x"), "sample=file"),
        ((OTHER,), "model.path"),
        (("model.random_init.layers=3",), "model.random_init.layers"),
    ],
)
def test_the_demo_is_left_out_where_content_of_the_users_is_typed(
    line: tuple[str, ...], content: str | None
) -> None:
    typed = read_values(line)
    assert recipes.users_content(typed) == content
    assert ("recipe=none" in for_hydra(*line)) == (content is not None)
    said = recipes.describe_recipe(typed)
    assert (
        said == "recipe: demo" if content is None else said.startswith(f"recipe: none ({content} ")
    )
    assert recipes.recipe_in_place_of_default({**typed, "recipe": "demo"}) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ((), "objective: dpo (the default) and its control, plain SFT on the chosen answers"),
        (("recipe=tiny", "align=kto"), "objective: kto (typed)"),
        (
            ("recipe=short_tasks",),
            "objective: dpo (the default), without its control (control=true)",
        ),
        (
            ("recipe=own_reward",),
            "objective: grpo (of the recipe), without its control (control=true)",
        ),
        (
            ("recipe=own_reward", "align=raft", "control=true"),
            "objective: grpo (typed) and its control, best of one pool",
        ),
        (
            ("recipe=own_reward", "control=true"),
            "objective: grpo (of the recipe) and its control, best draws",
        ),
        (("recipe=rejection_sampling",), ""),
    ],
)
def test_the_first_line_says_which_objective_trains_and_why(
    line: tuple[str, ...], said: str
) -> None:
    cfg = settings(*line)
    assert recipes.describe_objective(cfg, read_values(line)).removeprefix("; ") == said


def test_toy_has_a_tiny_model_without_a_recipe_too() -> None:
    assert settings("data.path=docs/examples/prompts.jsonl", "scale=toy").model.random_init
    own = settings("data.path=docs/examples/prompts.jsonl", "scale=toy", OTHER).model
    assert (own.path, own.random_init) == ("someone/other", None)


def test_plain_defaults_suit_a_file_of_the_users() -> None:
    """All of a file's preferences become pairs, and DPO is evaluated while it trains."""
    own = settings("label=dataset", "label.path=x")
    demo = settings()
    assert (own.pairs.min_score, own.pairs.strategy, own.dpo.first_difference) == (
        0.0,
        "all",
        False,
    )
    assert own.dpo.evaluations > demo.dpo.evaluations == 0
    assert settings(SOURCE).sft.max_length > demo.sft.max_length
    typed = settings("recipe=demo", "label=dataset", "label.path=x")
    assert (typed.pairs.min_score, typed.dpo) == (1.0, demo.dpo)


def test_a_job_of_a_sweep_is_told_of_its_own_recipe_and_model() -> None:
    with as_typed("-m", "recipe='demo',tiny", "model=tiny,smollm2_135m", "stage=plan"):
        typed = line_of_process()
    job = job_line(typed, ["recipe=tiny", "model=tiny", "stage=plan", "pairs=all"]).values
    assert job == {"recipe": "tiny", "model": "tiny", "stage": "plan"}
    assert recipes.describe_recipe(job) == "recipe: tiny"


@pytest.mark.parametrize(
    ("recipe", "typed", "key"),
    [
        ("smollm2_360m", "data=verifiable", "data.sources"),
        ("demo", "data=file", "data.tasks"),
        ("zephyr_7b", "label=judge", "label.path"),
    ],
)
def test_contents_are_not_mixed(recipe: str, typed: str, key: str) -> None:
    line = refused(f"recipe={recipe}", typed)
    assert line.startswith(f"error: {typed}:") or typed in line
    assert key in line


def test_what_is_not_typed_stays_the_recipes_and_typed_keys_win() -> None:
    demo = settings()
    other = settings("pairs=all", "pairs.min_score=0.5", "dpo.beta=0.3")
    assert (other.pairs.strategy, other.pairs.min_score) == ("all", 0.5)
    assert other.pairs.max_per_prompt == demo.pairs.max_per_prompt == 1
    assert (other.sft, other.sample) == (demo.sft, demo.sample)
    assert (other.dpo.beta, other.dpo.learning_rate) == (0.3, demo.dpo.learning_rate)
    assert settings("recipe=tiny", "data=file", SOURCE).data.generated == {}


@pytest.fixture
def own_recipes() -> Iterator[Callable[[str, str], None]]:
    """A function that writes recipes, which are removed after the test."""
    written = set[Path]()

    def write(name: str, text: str) -> None:
        (RECIPES / f"{name}.yaml").write_text(text)
        written.add(RECIPES / f"{name}.yaml")
        forget_compositions()

    yield write
    for recipe in written:
        recipe.unlink()
    forget_compositions()


@pytest.mark.extended
def test_a_recipe_has_the_say_over_what_it_starts_from(
    own_recipes: Callable[[str, str], None],
) -> None:
    own_recipes(
        "above", "defaults: [demo, {override /pairs: margin}]\npairs: {max_per_prompt: 9}\n"
    )
    own_recipes("top", "defaults: [above]\npairs: {min_margin: 0.5}\n")
    own_recipes("under", "defaults: [_self_, demo]\ndpo: {epochs: 7, beta: 0.7}\n")
    pairs = settings("recipe=top").pairs
    below = settings("recipe=under")
    assert (pairs.strategy, pairs.max_per_prompt, pairs.min_margin, pairs.min_score) == (
        "margin",
        9,
        0.5,
        0.0,
    )
    assert pairs.max_length_ratio is None
    assert (below.dpo.epochs, below.dpo.beta) == (settings().dpo.epochs, 0.7), (
        "with _self_ first, the recipe is below its base"
    )


@pytest.mark.parametrize(
    "line",
    [
        ("recipe=from_preferences", "data.path=docs/examples/preferences.jsonl"),
        ("recipe=from_prompts", "data.path=docs/examples/prompts.jsonl"),
        ("recipe=demo",),
    ],
)
def test_a_toy_adds_no_prompts_that_its_recipe_does_not_have(line: tuple[str, ...]) -> None:
    full, toy = (settings(*line, *scale).data.generated for scale in ((), ("scale=toy",)))
    assert toy.keys() <= full.keys()
    assert all(count <= full[group] for group, count in toy.items())


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ((OTHER,), []),  # of a size that nobody knows here
        (
            ("recipe=demo", "model=llama31_8b"),
            ["5e-06 (Tülu", "5e-07 (Zephyr"],
        ),
        (
            ("model=llama32_1b", "dpo.loss_type=[ipo]"),
            ["sft.", "1e-06 (SmolLM2 1.7B, arXiv:2502.02737): type dpo.learning_rate=auto."],
        ),
        (("recipe=zephyr_7b",), []),
        (("model=embedded",), []),
    ],
)
def test_rates_stay_and_those_of_published_runs_are_named(
    line: tuple[str, ...], advice: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings = list[str]()
    monkeypatch.setattr(starting_values, "warn_once", warnings.append)
    cfg = settings(*line)
    plain = settings(*line[:1])
    starting_values.warn_of_high_rates(cfg, read_values(line))
    assert len(warnings) == len(advice)
    assert all(text in warning for text, warning in zip(advice, warnings, strict=True))
    assert cfg.dpo.learning_rate == plain.dpo.learning_rate
    assert sealed_json.warn_once is not starting_values.warn_once


@pytest.mark.extended
def test_a_typed_path_takes_the_place_of_random_weights_and_the_other_way_round() -> None:
    assert composed("recipe=tiny", "sft=none", OTHER).model == {
        "path": "someone/other",
        "revision": None,
        "random_init": None,
        "adapter_base": None,
        "config": {},
        "dtype": None,
        "adapter": None,
        "key": "model.path",
    }
    random = settings("model.random_init.layers=3").model
    assert (random.path, random.random_init.layers) == (None, 3)
    assert "exclude each other" in refused("model.path=x", "model.random_init.layers=3")
    assert for_hydra("recipe=tiny", OTHER, "model.random_init=null")[1:] == [
        OTHER,
        "model.random_init=null",
    ]


@pytest.mark.parametrize(
    ("typed", "micro_batch"),
    [
        (("dpo.batch_size=12",), 6),  # the recipe has 8
        (("dpo.batch_size=12", "dpo.runtime.micro_batch=5"), 5),
        (("dpo.batch_size=12", "dpo.runtime.micro_batch=auto"), "auto"),
    ],
)
def test_a_recipes_micro_batch_gives_way_to_what_is_typed(
    typed: tuple[str, ...], micro_batch: int | str
) -> None:
    cfg = settings("recipe=short_tasks", *typed)
    fit_micro_batches(cfg, read_values(typed))
    assert cfg.dpo.runtime.micro_batch == micro_batch
