"""Check that typed settings always win over recipes."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from stages.cli import compose, recipe_layers, recipes
from stages.commands import plan
from stages.config.installation import ROOT
from stages.config.schema import RECIPES
from tests.helpers import (
    TINY,
    Chain,
    command,
    composed,
    forget_compositions,
    inside,
    refused,
    settings,
    slow_but,
)

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
OPTIONS = {
    folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
    for folder in (ROOT / "conf").iterdir()
    if folder.is_dir() and folder.name != "scale"
}
ROUNDS = range(len(OPTIONS["pairs"]))  # `pairs` has the most options of all groups that recipes set
OTHER = "model.path=someone/other"


def part(cfg: DictConfig, key: str) -> object:
    """Return a block of a configuration, with interpolations unresolved."""
    return OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=False)


def block(key: str, *overrides: str) -> object:
    return part(composed(*overrides), key)


def options(i: int) -> list[str]:
    """Return one option of every group. Over all rounds, each group that recipes set has had all its options."""
    return [f"{group}={names[i % len(names)]}" for group, names in OPTIONS.items()]


@pytest.mark.parametrize("i", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in ROUNDS[1:])])
@pytest.mark.parametrize("name", slow_but(NAMES, "demo"))
def test_a_typed_group_gives_all_its_values_whatever_the_recipe(name: str, i: int) -> None:
    alone, under = composed(*options(i), "~recipe"), composed(*options(i), f"recipe={name}")
    for group in OPTIONS:
        for key in recipe_layers.BLOCKS.get(group, [group]):
            assert part(under, key) == part(alone, key), (options(i), key)


def test_the_rounds_have_every_option_that_a_recipe_could_undo() -> None:
    keys = {
        str(key)
        for recipe in recipe_layers.load_recipes([], all_names=True).values()
        for key in recipe
    }
    groups = [group for group in OPTIONS if keys & {*recipe_layers.BLOCKS.get(group, [group])}]
    assert "pairs" in groups and max(len(OPTIONS[group]) for group in groups) <= len(ROUNDS)


def test_every_key_of_a_group_is_one_that_it_has_the_say_of() -> None:
    for group, names in OPTIONS.items():
        for name in names:
            file = ROOT / "conf" / group / f"{name}.yaml"
            package = re.search(r"^# @package (.*)$", file.read_text(), flags=re.MULTILINE)
            keys = [str(key) for key in OmegaConf.load(file) if key != "defaults"]
            blocks = {"_global_": keys}.get(package[1], [package[1]]) if package else [group]
            assert set(blocks) <= {*recipe_layers.BLOCKS.get(group, [group])}


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
@pytest.mark.parametrize(
    ("start", "group"),
    [
        ("demo", "pairs"),
        pytest.param("instructions", "data", marks=pytest.mark.slow),
        pytest.param("zephyr_7b", "sft", marks=pytest.mark.slow),
    ],
)
def test_a_group_in_a_recipe_gives_all_its_values_as_on_the_command_line(
    start: str, group: str, own_recipes: Callable[[str, str], None]
) -> None:
    name = OPTIONS[group][0]
    own_recipes("given", f"defaults: [{start}, {{override /{group}: {name}}}]\n")
    own_recipes("further", "defaults: [given]\n")
    typed = block(group, f"recipe={start}", f"{group}={name}")
    assert (
        block(group, "recipe=given")
        == block(group, "recipe=further")
        == typed
        != block(group, f"recipe={start}")
    )


@pytest.mark.extended
def test_a_recipe_has_the_say_over_what_it_starts_from(
    own_recipes: Callable[[str, str], None],
) -> None:
    own_recipes(
        "above", "defaults: [demo, {override /pairs: margin}]\npairs: {max_per_prompt: 9}\n"
    )
    own_recipes("top", "defaults: [above]\npairs: {min_margin: 0.5}\n")
    own_recipes("under", "defaults: [_self_, demo]\ndpo: {epochs: 7, beta: 0.7}\n")
    pairs, below = settings("recipe=top").pairs, settings("recipe=under")
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


@pytest.mark.extended
@pytest.mark.parametrize("recipe", slow_but(["demo", "tiny", "instructions"], "demo"))
def test_no_filter_of_a_recipe_meets_the_preferences_of_others(recipe: str) -> None:
    """All preferences of a file become pairs, with a typed recipe or only the typed group."""
    every = block("pairs", "pairs=all", "~recipe")
    assert block("pairs", f"recipe={recipe}", "label=dataset", "label.path=x") == every
    typed = settings(
        f"recipe={recipe}", "label=dataset", "label.path=x", "pairs.max_length_ratio=2"
    )
    assert (typed.pairs.max_length_ratio, typed.pairs.strategy) == (2, "all")
    chosen = block("pairs", f"recipe={recipe}", "label=dataset", "label.path=x", "pairs=margin")
    assert chosen == block("pairs", "pairs=margin", "~recipe")


def test_the_recipe_for_preferences_is_what_the_group_is_without_the_demos_tests() -> None:
    recipe, group = (
        settings("recipe=from_preferences", "label.path=x"),
        settings("label=dataset", "label.path=x"),
    )
    tasks = {
        name
        for name, count in vars(recipe.data.tasks).items()
        if count != vars(group.data.tasks)[name]
    }
    assert tasks == {
        "preference",
        "open_preference",
        "test",
        "unseen_phrasings",
        "unseen_tasks",
        "rephrased",
    }
    assert not any(vars(recipe.data.tasks)[name] for name in tasks)
    assert replace(recipe, data=group.data, answer=group.answer) == group


@pytest.mark.parametrize(
    ("line", "rounds"),
    [
        ((), (3, 100)),
        (("rounds=2",), (2, 100)),
        pytest.param(("label.own={file: a.py, name: A}",), (1, None), marks=pytest.mark.slow),
        (("align=grpo",), (1, None)),
        (("data.sources=[{path: x.jsonl}]",), (1, None)),
        (("dpo.adapter=continued", "sft.adapter=lora"), (1, None)),
        (("scale=toy",), (1, None)),
        (("label=judge", "rounds=2"), (2, None)),
    ],
)
def test_a_recipes_rounds_are_of_its_own_prompts_checks_and_objective(
    line: tuple[str, ...], rounds: tuple[int, int | None], own_recipes: Callable[[str, str], None]
) -> None:
    own_recipes(
        name := f"in_rounds_{os.getpid()}",
        "defaults: [demo]\nrounds: 3\nsample: {prompts_per_round: 100}\n",
    )
    cfg = settings(f"recipe={name}", *line)
    assert (cfg.rounds, cfg.sample.prompts_per_round) == rounds


@pytest.mark.parametrize(
    ("align", "line", "trained"),
    [
        ("dpo", (), True),
        ("dpo", ("align=grpo",), False),
        ("dpo", ("align=kto", "arms=[grpo]"), False),
        ("dpo", ("align=grpo", "arms=[dpo]"), True),
        ("grpo", (), False),
        ("grpo", ("align=dpo",), True),
        ("grpo", ("arms=[dpo]",), True),
    ],
)
def test_a_recipes_controls_are_trained_beside_dpo_alone(
    align: str, line: tuple[str, ...], trained: bool, own_recipes: Callable[[str, str], None]
) -> None:
    controls = "control: true\ncontrol_pairs: random\n"
    own_recipes(
        name := f"controlled_{os.getpid()}", f"defaults: [demo]\nalign: {align}\n{controls}"
    )
    cfg = settings(f"recipe={name}", *line)
    assert (cfg.control, bool(cfg.control_pairs)) == (trained, trained)


@pytest.mark.parametrize(
    "name", slow_but(["zephyr_7b", "smollm2_360m", "llama32_1b_qlora", "tulu3_8b"], "zephyr_7b")
)
def test_a_recipe_on_a_preference_set_takes_all_of_it(name: str) -> None:
    pairs = block("pairs", f"recipe={name}")
    assert isinstance(pairs, dict)
    every = {**pairs, "validation_fraction": 0.1}
    assert every == block("pairs", "pairs=all", "~recipe")


@pytest.mark.extended
@pytest.mark.parametrize("recipe", slow_but(["demo", "instructions"], "demo"))
def test_what_a_recipe_asks_of_checks_is_not_asked_of_other_scores(recipe: str) -> None:
    typed = (f"recipe={recipe}", "sft.demonstrations=null")
    assert (
        settings(*typed).pairs.min_score
        == settings(*typed, "label=verifier").pairs.min_score
        == 1.0
    )
    assert settings(*typed, "label.own={file: a.py, name: A}").pairs.min_score == 0.0
    assert settings(*typed).dpo.first_difference == (recipe == "demo")
    judge = settings(*typed, "label=judge")
    assert judge.pairs.min_score == 0.0 and not judge.dpo.first_difference
    assert settings(*typed, "label=judge", "dpo.first_difference=true").dpo.first_difference
    assert settings(*typed, "label=judge", "pairs.min_score=0.5").pairs.min_score == 0.5


def test_a_recipe_of_another_labeler_keeps_nothing_that_suits_checks(
    own_recipes: Callable[[str, str], None],
) -> None:
    own_recipes(name := f"judged_{os.getpid()}", "defaults: [demo, {override /label: judge}]\n")
    cfg = settings(f"recipe={name}", "label.judge.endpoints=[{base_url: 'http://h/v1', model: m}]")
    assert (cfg.pairs.min_score, cfg.dpo.first_difference) == (0.0, False)


def test_dpo_beside_another_objective_is_the_recipes_own() -> None:
    assert settings("align=grpo", "arms=[dpo]").dpo == settings().dpo


def test_rows_of_others_may_be_as_long_as_by_default() -> None:
    source = "data.sources=[{path: x.jsonl}]"
    assert (settings().sft.max_length, settings(source).sft.max_length) == (768, 1024)
    assert settings(source, "sft.max_length=512").sft.max_length == 512
    assert settings("recipe=zephyr_7b", source).sft.max_length == 2048


def test_what_is_not_typed_stays_the_recipes_and_typed_keys_win() -> None:
    demo, other = settings(), settings("pairs=all", "pairs.min_score=0.5", "dpo.beta=0.3")
    assert (demo.pairs.max_per_prompt, other.pairs.max_per_prompt, other.pairs.min_score) == (
        1,
        16,
        0.5,
    )
    assert (other.sft, other.sample) == (demo.sft, demo.sample)
    assert (other.dpo.beta, other.dpo.learning_rate) == (0.3, demo.dpo.learning_rate)
    assert (
        settings("recipe=tiny", "data=file", "data.sources=[{path: x.jsonl}]").data.tasks.sft == 0
    )
    assert settings("recipe=from_preferences", "label.path=x").pairs.strategy == "all", (
        "a recipe's own choice"
    )


def test_a_toy_shrinks_what_is_typed_too() -> None:
    toy = settings("recipe=zephyr_7b", "scale=toy", "data=questions", "sft=default")
    assert (toy.data.sources, toy.sft.max_length, toy.data.tasks.test) == ([], 64, 480)


JOBLIB = pytest.param(("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), marks=pytest.mark.slow)


@pytest.mark.extended
@pytest.mark.parametrize("launcher", [(), JOBLIB])
def test_a_sweep_over_a_group_takes_its_values_too(launcher: tuple[str, ...], chain: Chain) -> None:
    """`pairs=margin` has max_per_prompt 4, and the recipe has 1."""
    recipe = RECIPES / "one_pair.yaml"
    recipe.write_text("defaults: [tiny]\npairs: {max_per_prompt: 1, validation_fraction: 0.2}\n")
    try:
        line = (
            "recipe=one_pair",
            "tracker=none",
            f"outputs={chain.root}",
            "stage=pairs",
            "pairs=margin,random",
            "-m",
        )
        ran = (command if launcher else inside)(*line, *launcher)
    finally:
        recipe.unlink()
    assert ran.returncode == 0, ran.stderr
    settings_made = {
        f"{pairs['strategy']} {pairs['max_per_prompt']} {pairs['validation_fraction']}"
        for pairs in made_of(chain)
    }
    assert {"margin 4 0.1", "random 2 0.1"} < settings_made


def made_of(chain: Chain) -> list[dict[str, object]]:
    from stages.store.store import Store

    return [manifest["settings"] for _, manifest in Store(chain.root).manifests("pairs")]


def test_the_control_of_another_model_has_at_most_the_rate_of_its_sft() -> None:
    for recipe, model in (("bakeoff", "llama31_8b"), ("instructions", "llama32_1b")):
        line = (f"recipe={recipe}", f"model={model}")
        forget_compositions()
        assert settings(*line).control_learning_rate == settings(*line).sft.learning_rate
        assert settings(*line, "control_learning_rate=3e-5").control_learning_rate == 3e-5


def rates_of(recipe: str) -> tuple[float, float]:
    """Return the learning rates of SFT and DPO as the recipe's file types them."""
    typed = OmegaConf.load(RECIPES / f"{recipe}.yaml")
    return typed.sft.learning_rate, typed.dpo.learning_rate


@pytest.mark.parametrize(
    ("line", "rates", "message"),
    [
        ((), rates_of("demo"), None),
        (
            (OTHER,),
            (5e-5, 1e-5),
            f"recipe=demo's .* with {OTHER}: sft.learning_rate=5e-05, dpo.learning_rate=1e-05",
        ),
        (
            ("model=smollm2_360m",),
            (1e-4, 1e-5),
            r"with model=smollm2_360m: dpo.learning_rate=1e-05 \(135M",
        ),
        (("model=llama32_1b",), (2e-5, 1e-6), "dpo.beta=0.5"),
        (("model=llama31_8b",), (5e-6, 5e-7), r"sft.learning_rate=5e-06 \(Tülu 3 8B, arXiv"),
        (
            ("model=llama31_8b", "sft.adapter=lora", "dpo.adapter=lora"),
            (1e-4, 5e-6),
            "dpo.beta=0.01",
        ),
        (("recipe=tulu3_8b", "model=llama31_70b"), (2e-6, 2e-7), "sft.learning_rate=2e-06"),
        (("model.random_init.layers=3",), (5e-5, 1e-5), "with model=tiny: sft.learning_rate=5e-05"),
        (
            (OTHER, "sft.learning_rate=2e-4"),
            (2e-4, 1e-5),
            f"with {OTHER}: dpo.learning_rate=1e-05. Type",
        ),
        pytest.param(
            (OTHER, "sft.learning_rate=2e-4", "dpo.learning_rate=2e-5"),
            (2e-4, 2e-5),
            None,
            marks=pytest.mark.slow,
        ),
        (("model=embedded",), rates_of("demo"), None),
        (("recipe=smollm2_135m", "model.path=HuggingFaceTB/SmolLM2-135M"), rates_of("demo"), None),
        # rates below the defaults are not raised
        (("recipe=zephyr_7b", OTHER), (2e-5, 5e-7), None),
        pytest.param(
            ("recipe=smollm2_360m", OTHER),
            (5e-5, 1e-6),
            "sft.learning_rate=5e-05. Type",
            marks=pytest.mark.slow,
        ),
        # with sft=none, SFT is not trained
        (("recipe=from_sft_checkpoint", OTHER), (5e-5, 5e-7), None),
        (("recipe=tiny", "model.random_init.layers=3"), (5e-3, 1e-3), None),
        (("recipe=zephyr_7b", "scale=toy"), (5e-3, 1e-3), None),
        (
            ("recipe=zephyr_7b", "scale=toy", OTHER),
            (2e-5, 5e-7),
            "recipe=tiny's .* sft.learning_rate=2e-05, dpo",
        ),
    ],
)
def test_a_recipes_rates_belong_to_its_model(
    line: tuple[str, ...],
    rates: tuple[float, float],
    message: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    forget_compositions()
    cfg = settings(*line)
    assert (cfg.sft.learning_rate, cfg.dpo.learning_rate) == pytest.approx(rates)
    assert re.search(message, caplog.text) if message else caplog.text == ""


OF_OTHER = (
    "model: {path: someone/other}\nsft: {learning_rate: 3.0e-4}\ndpo: {learning_rate: 2.0e-4}"
)


@pytest.mark.parametrize(
    ("text", "line", "rates"),
    [
        ("", (), (5e-6, 5e-7, 0.1)),
        ("", ("dpo.learning_rate=1e-4",), (5e-6, 1e-4, 0.1)),
        ("dpo: {adapter: lora}", (), (5e-6, 5e-6, 0.01)),
        ("dpo: {adapter: lora, beta: 0.2}", (), (5e-6, 5e-6, 0.2)),
        ("dpo: {adapter: lora}", ("dpo.loss_type=[ipo]",), (5e-6, 5e-6, 0.1)),
        ("sft: {learning_rate: 3.0e-4}\ndpo: {learning_rate: 2.0e-4}", (), (3e-4, 2e-4, 0.1)),
        (OF_OTHER, (OTHER,), (3e-4, 2e-4, 0.1)),
    ],
)
def test_a_recipe_for_a_model_of_its_own_leaves_unstated_rates_to_published_runs(
    text: str,
    line: tuple[str, ...],
    rates: tuple[float, float, float],
    own_recipes: Callable[[str, str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    own_recipes(
        name := f"own_model_{os.getpid()}", f"defaults: [{{override /model: llama31_8b}}]\n{text}\n"
    )
    cfg = settings(f"recipe={name}", *line)
    assert (cfg.sft.learning_rate, cfg.dpo.learning_rate, cfg.dpo.beta) == pytest.approx(rates)
    assert ("sft.learning_rate=5e-06" in caplog.text) == ("sft" not in text)


def test_a_published_beta_is_of_its_loss() -> None:
    other = ("model=llama31_8b", "dpo.adapter=lora")
    assert (settings(*other).dpo.beta, settings(*other, "dpo.loss_type=[ipo]").dpo.beta) == (
        0.01,
        0.1,
    )


@pytest.mark.extended
def test_the_lowered_rates_are_told_once_of_a_plan_and_of_a_sweep(chain: Chain) -> None:
    model = f"model.path={chain.folder('sft') / 'model'}"
    ran = command(*TINY, f"outputs={chain.root}", model, "stage=plan", "dpo.beta=0.1,0.2", "-m")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("recipe=tiny's learning rates") == 1
    assert ran.stdout.count("learning_rate 0.005 -> 5e-05") == 2, "in the plan of each job"


@pytest.mark.extended
def test_a_typed_path_takes_the_place_of_random_weights_and_the_other_way_round() -> None:
    assert composed("recipe=tiny", "sft=none", OTHER).model == {
        "path": "someone/other",
        "revision": None,
        "random_init": None,
        "config": {},
        "key": "model.path",
    }
    random = settings("model.random_init.layers=3").model
    assert (random.path, random.random_init.layers) == (None, 3)
    assert "exclude each other" in refused("model.path=x", "model.random_init.layers=3")
    assert compose.normalise(["recipe=tiny", OTHER, "model.random_init=null"])[1:] == [
        OTHER,
        "model.random_init=null",
    ]


def test_a_toy_of_4_bit_weights_needs_no_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recipes, "find_spec", lambda package: None)
    forget_compositions()
    toy = settings("recipe=llama32_1b_qlora", "scale=toy")
    forget_compositions()
    assert (toy.sft.adapter, toy.dpo.adapter) == ("lora", "lora")
    assert "sft.adapter=lora is used instead of" in caplog.text


@pytest.mark.extended
@pytest.mark.parametrize(
    ("typed", "micro_batches"),
    [
        (("dpo.batch_size=12,14", "-m"), [6, 7]),  # the demo's is 8
        (("dpo.batch_size=24", "sft.batch_size=2", "launch=ddp"), [6]),
        (("scale=toy", "dpo.batch_size=3", "recipe=zephyr_7b"), [1]),
        (("dpo.batch_size=16", "dpo.runtime.micro_batch=16"), [16]),
        pytest.param(
            ("dpo.batch_size=12", "dpo.runtime.micro_batch=auto"), ["auto"], marks=pytest.mark.slow
        ),
    ],
)
def test_a_recipes_micro_batch_gives_way_to_what_is_typed(
    typed: tuple[str, ...],
    micro_batches: list[int | str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = list[int | str]()
    monkeypatch.setattr(
        plan, "show", lambda nodes, *_: planned.append(nodes["dpo"].config.runtime.micro_batch)
    )
    ran = inside("stage=plan", "tracker=none", f"outputs={tmp_path}", *typed)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert planned == micro_batches


@pytest.mark.extended
def test_a_typed_micro_batch_is_checked(tmp_path: Path) -> None:
    for typed in ("dpo.runtime.micro_batch=8", "dpo.runtime={micro_batch: 8}"):
        ran = inside(
            "stage=plan", "tracker=none", f"outputs={tmp_path}", "dpo.batch_size=12", typed
        )
        assert "dpo.runtime.micro_batch=8 × 1 " in ran.stderr


def test_the_settings_of_an_endpoint_may_be_one_mapping() -> None:
    typed = "sample.endpoint={base_url: 'http://127.0.0.1:1/v1', model: m, extra: {top_k: 5}}"
    keys = ("base_url=http://127.0.0.1:1/v1", "model=m", "extra={top_k: 5}")
    whole = settings(*TINY, "sample=openai", typed).sample.endpoint
    assert (
        whole
        == settings(
            *TINY, "sample=openai", *(f"sample.endpoint.{each}" for each in keys)
        ).sample.endpoint
    )
    assert whole.extra == {"top_k": 5}
    assert "'base_url'" in refused(*TINY, "sample=openai", "sample.endpoint={base_ul: x}")
    assert "cannot be deleted" in refused(*TINY, "~sample.endpoint")
