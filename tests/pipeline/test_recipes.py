"""Tests of every recipe: composed unchanged for every stage, and run to its report at toy scale."""

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stages.cli import main
from stages.cli.recipe_layers import (
    blocks_of_group,
    built_in_recipes,
    group_options,
    load_recipe_file,
    load_recipes,
    recipe_files,
)
from stages.cli.resolve import lower_to_maxima
from stages.cli.typed_line import read_values
from stages.config.choices import Align, Split
from stages.config.commands import COMMANDS
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_table import STAGES, Target
from stages.pipeline.graph import wire_graph
from stages.preflight import constraints, machine_needs
from stages.store.source_files import HUB_ID
from stages.store.store import Store
from tests.helpers import as_typed, common, composed, settings, settings_by_key

NAMES = sorted(path.stem for path in built_in_recipes())
# they run on files of the user's alone: test_own_prompts.py, test_examine.py
OF_OWN_FILES = ("from_prompts", "own_reward", "rejection_sampling", "examine")


def overrides(name: str) -> list[str]:
    """Return the command line in the comment at the head of a recipe."""
    (line,) = re.findall(r"^#   command: .*python run\.py([^(\n]*)", head(name), flags=re.MULTILINE)
    return shlex.split(line)


def head(name: str) -> str:
    return "".join(
        line for line in recipe_files()[name].read_text().splitlines(True) if line.startswith("#")
    )


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_its_own_command_composes_for_every_stage(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever extra it asks for is there
    for module in (constraints, machine_needs):
        monkeypatch.setattr(module, "find_spec", lambda package: package)
    cfg = settings(*overrides(name))
    others = {stage.name for stage in STAGES.values() if stage.recipe not in ("", name)}
    for stage in [stage for stage in (*Target, *COMMANDS) if stage not in others]:
        constraints.validate_config(replace(cfg, stage=stage))
    for source in cfg.data.sources if name not in OF_OWN_FILES else ():
        assert HUB_ID.fullmatch(source.path)
        assert set(source.splits) <= set(Split) and sum(source.splits.values()) <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_recipe_replaces_no_group_of_its_base(name: str) -> None:
    """So Hydra itself would merge it: as an experiment on another one."""
    recipe = load_recipe_file(recipe_files()[name])
    bases = [entry for entry in recipe.get("defaults") or [] if isinstance(entry, str)]
    for base in load_recipes(*bases).values() if bases else ():
        for group in group_options(recipe):
            assert group not in group_options(base)
            for block in blocks_of_group(group):
                assert OmegaConf.select(base, block) is None, f"{base}: {block}"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of all recipes and all pytest workers, so that shared nodes are built once."""
    return Store(common(tmp_path_factory) / "recipes")


# Keys that scale=toy may lower, with every key below them
SIZES = [
    *(f"{block}.batch_size" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *(f"{block}.epochs" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *(f"{block}.max_length" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *(f"{block}.evaluations" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *(f"{block}.runtime.micro_batch" for block in ("sft", "dpo", "reward")),
    *(f"{block}.max_new_tokens" for block in ("select", "sample", "grpo", "online_dpo", "answer")),
    *(f"{block}.candidates_per_prompt" for block in ("select", "sample")),
    *("grpo.completions", "online_dpo.completions", "eval.likelihood_prompts", "data.tasks"),
]
# What stands in for weights, sources and preferences that are not on this machine
STAND_INS = ["model", "sft.template", "data.sources", "data.tasks", "label.path", "label.hub_split"]
# Without these, a model that has learnt nothing would give no pair
OF_AN_UNTRAINED_MODEL = [
    *(f"{block}.learning_rate" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *(f"{block}.max_dropped" for block in ("sft", "dpo", "kto", "grpo", "online_dpo", "reward")),
    *("select.min_score", "pairs.min_score", "pairs.max_length_ratio", "pairs.quality"),
]
BRIEF = "label.own={file: docs/examples/brief.py, name: Brief}"
# What a user types beside the recipe
TYPED = {
    "from_preferences": ["data.path=docs/examples/preferences.jsonl"],
    "from_prompts": [
        "data.path=docs/examples/prompts.jsonl",
        "label=reward_model",
        "reward.source.path=docs/examples/preferences.jsonl",
    ],
    "own_reward": ["data.path=docs/examples/prompts.jsonl", BRIEF],
    "rejection_sampling": ["data.path=docs/examples/prompts.jsonl", "label=own", BRIEF],
    "examine": ["label.path=package:stages/tasks/toy_preferences.jsonl"],
}


def is_listed(key: str, listed: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in listed)


def resolved(*line: str) -> dict[str, Any]:
    """Return the settings of a line by key, with sizes lowered as at scale=toy."""
    cfg = settings(*line)
    lower_to_maxima(cfg, read_values(line))
    return settings_by_key(OmegaConf.create(asdict(cfg)))


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_a_toy_lowers_sizes_and_changes_what_is_not_here(name: str) -> None:
    line = (f"recipe={name}", "precision=fp32", *TYPED.get(name, []))
    full = resolved(*line)
    toy = resolved(*line, "scale=toy")
    for key in sorted(full.keys() | toy.keys()):
        before, after = full.get(key), toy.get(key)
        if (
            before == after
            or key.startswith("maxima")
            or is_listed(key, [*STAND_INS, *OF_AN_UNTRAINED_MODEL])
        ):
            continue
        assert is_listed(key, SIZES), (key, before, after)
        assert before == "auto" or after < before, (key, before, after)


def test_a_toy_keeps_what_a_recipe_is_about() -> None:
    for name in ("instructions", "rejection_sampling"):
        cfg = settings(f"recipe={name}", "scale=toy", *TYPED.get(name, []))
        assert cfg.sft.demonstrations == "selected"
    cfg = settings("recipe=own_reward", "scale=toy", *TYPED["own_reward"])
    assert cfg.data.path == "docs/examples/prompts.jsonl" and not cfg.data.generated
    cfg = settings("recipe=short_tasks", "scale=toy")
    assert cfg.data.generated["open_sft"] > 0 and cfg.sft.packing


def test_a_toy_lowers_no_typed_and_no_smaller_size() -> None:
    typed = ("recipe=short_tasks", "scale=toy", "dpo.epochs=7", "reward.runtime={micro_batch: 3}")
    toy = resolved(*typed)
    assert (toy["sft.batch_size"], toy["dpo.batch_size"]) == (1, 4), "the recipe's and the largest"
    assert (toy["dpo.epochs"], toy["reward.runtime.micro_batch"]) == (7, 3), "as typed"
    assert (toy["sft.epochs"], toy["reward.epochs"]) == (2, 1)
    full = resolved("recipe=short_tasks")
    lengths = [
        each["sample.max_new_tokens"] for each in (full, toy, resolved(*typed[:2], "sft=none"))
    ]
    assert lengths == [96, 12, 96], "no SFT teaches a random model to end"


@pytest.mark.parametrize(
    ("maxima", "key"),
    [
        ("{dpo: {bach_size: 3}}", "dpo.bach_size"),
        ("{dpo: {batch_size: null}}", "dpo.batch_size"),
        ("{dpo: {batch_size: a}}", "dpo.batch_size"),
        ("{dpo: {batch_size: 2.5}}", "dpo.batch_size"),
        ("{dpo: {batch_size: true}}", "dpo.batch_size"),
        ("{sft: {packing: 0}}", "sft.packing"),
        ("{sft: 3}", "sft"),
        ("{dpo: {runtime: 3}}", "dpo.runtime"),
    ],
)
def test_what_cannot_be_a_maximum_is_refused(maxima: str, key: str) -> None:
    cfg = settings("recipe=tiny", f"maxima={maxima}")
    with pytest.raises(UserError, match=rf"maxima\.{re.escape(key)}\b"):
        lower_to_maxima(cfg, {})


@pytest.mark.parametrize(
    ("typed", "size"),
    [
        ("dpo.batch_size=8", 8),
        ("dpo={batch_size: 8}", 8),
        ("dpo={batch_size : 8}", 8),
        ("dpo={trainer: {weight_decay: 0.5}, batch_size: 8}", 8),
        ("dpo.beta=0.2", 4),
        ("dpo={trainer: {gradient_accumulation_steps: 8}}", 4),
    ],
)
def test_a_typed_size_stays_above_its_maximum_however_it_is_typed(typed: str, size: int) -> None:
    cfg = settings("recipe=tiny", "dpo.batch_size=8")
    cfg.maxima = {"dpo": {"batch_size": 4}}
    lower_to_maxima(cfg, read_values([typed]))
    assert cfg.dpo.batch_size == size


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_its_report_at_toy_scale(
    name: str,
    store: Store,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = (f"recipe={name}", "scale=toy", "tracker=none", f"outputs={store.root}")
    overrides += (*TYPED.get(name, []),)
    if name == "examine":
        models = [next((built / stage).glob("*/model")) for stage in ("dpo", "sft")]
        overrides += (f"examine.model={models[0]}", f"examine.before={models[1]}")
    with as_typed(*overrides, "stage=plan"):
        main.run(composed(*overrides, "stage=plan"))
    assert "report" in capsys.readouterr().out
    with as_typed(*overrides):
        main.run(composed(*overrides))
    cfg: Config = settings(*overrides)
    nodes = wire_graph(cfg, store.root / "cache" / "digests.json")
    manifests = {role: store.find(node) for role, node in nodes.items()}
    assert all(manifests.values())
    assert manifests["sft"]["metrics"]["trained"] is cfg.sft.train
    if cfg.align not in (Align.given, Align.none):
        metrics = manifests[str(cfg.align)]["metrics"]
        assert metrics["steps"] > 0
        assert metrics.get("step_0_gap", 0.0) <= 1e-5
