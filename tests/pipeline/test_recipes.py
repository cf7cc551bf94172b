"""Tests of every recipe: composed unchanged for every stage, and run to its report at toy scale."""

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from stages.cli import main
from stages.config.blocks.labels import PreferenceFile
from stages.config.choices import Command, Split
from stages.config.schema import RECIPES, Config, Target
from stages.labelers.dataset import Dataset
from stages.pipeline.graph import wire_graph
from stages.preflight import constraints, machine_needs
from stages.store.source_files import HUB_ID
from stages.store.store import Store
from stages.store.workspace import StageDir
from tests.helpers import common, composed, settings

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# they run on files of the user's alone: test_own_prompts.py, test_examine.py
OF_OWN_FILES = ("from_prompts", "own_reward", "rejection_sampling", "examine")
# What scale=toy may change: sizes, lengths and rates, where models and data come from, and what only a model that has
# learnt something can keep to.
SIZES = re.compile(
    r"precision|.*\.precision|model\..*|data\.(tasks|sources|path).*|label\.(path|hub_split)|.*\.runtime\..*|"
    r"(sft|dpo|kto|grpo|reward)\.(learning_rate|epochs|batch_size|max_length|max_dropped|evaluations)|"
    r"(sample|grpo|answer)\.max_new_tokens|grpo\.completions|pairs\.(min_score|max_(length|rejected)_ratio|quality)|sft\.demonstrations|"
    r"rounds|dpo\.trainer\..*|sample\.(rounds|prompts_per_round|candidates_per_prompt)|eval\.likelihood_prompts"
)


def overrides(name: str) -> list[str]:
    """Return the command line in the comment at the head of a recipe."""
    (line,) = re.findall(r"^#   command: .*python run\.py([^(\n]*)", head(name), flags=re.MULTILINE)
    return shlex.split(line)


def head(name: str) -> str:
    return "".join(
        line
        for line in (RECIPES / f"{name}.yaml").read_text().splitlines(True)
        if line.startswith("#")
    )


def flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {
        name: v
        for k, inner in value.items()
        for name, v in flat(inner, f"{key}.{k}" if key else k).items()
    }


def each_but(*quick: str) -> list[Any]:
    """Return all recipes. Those that are not quick are for `make test-all`."""
    others = [pytest.param(name, marks=pytest.mark.extended) for name in NAMES if name not in quick]
    return [*quick, *others]


@pytest.mark.extended
@pytest.mark.parametrize("name", NAMES)
def test_its_own_command_composes_for_every_stage(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whatever extra it asks for is there
    for module in (constraints, machine_needs):
        monkeypatch.setattr(module, "find_spec", lambda package: package)
    cfg = settings(*overrides(name))
    others = {Target.examine} if name != Target.examine else set()
    for stage in [stage for stage in (*Target, *Command) if stage not in others]:
        constraints.validate_config(replace(cfg, stage=stage))
    for source in cfg.data.sources if name not in OF_OWN_FILES else ():
        assert HUB_ID.fullmatch(source.path)
        assert set(source.splits) <= set(Split) and sum(source.splits.values()) <= 1 + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_its_head_says_what_it_costs_and_what_to_expect(name: str) -> None:
    head_fields = dict(re.findall(r"^#   (\w+): +(\S.*)$", head(name), flags=re.MULTILINE))
    assert {"command", "hardware", "expected"} <= set(head_fields)
    if name not in ("demo", "tiny"):
        assert f"recipe={name}" in head_fields["command"]
    if name not in ("demo", "tiny", "instructions"):
        assert re.search("not run|depends on", head(name), flags=re.IGNORECASE), (
            "nothing is claimed that was not seen"
        )


@pytest.mark.parametrize("name", each_but("zephyr_7b", "from_prompts", "instructions"))
def test_toy_scale_changes_sizes_and_places_alone(name: str) -> None:
    full, toy = (flat(asdict(settings(*overrides(name), *scale))) for scale in ((), ("scale=toy",)))
    changed = {key for key in {*full, *toy} if full.get(key) != toy.get(key)}
    assert [key for key in sorted(changed) if not SIZES.fullmatch(key)] == []


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of all recipes and all pytest workers, so that shared nodes are built once."""
    return Store(common(tmp_path_factory) / "recipes")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_OWN_FILES])
def test_it_runs_to_its_report_at_toy_scale(
    name: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (f"recipe={name}", "scale=toy", "tracker=none", f"outputs={store.root}")
    if name == "from_preferences":
        overrides += ("data.path=docs/examples/preferences.jsonl",)
    if name == "llama32_1b_qlora":  # 4-bit weights need bitsandbytes
        overrides += ("sft.adapter=lora", "dpo.adapter=lora")
    main.run(composed(*overrides, "stage=plan"))
    assert "report" in capsys.readouterr().out
    main.run(composed(*overrides))
    cfg: Config = settings(*overrides)
    nodes = wire_graph(cfg, store.root / "cache" / "digests.json")
    manifests = {role: store.find(node) for role, node in nodes.items()}
    assert all(manifests.values())
    assert manifests["sft"]["metrics"]["trained"] is cfg.sft.train
    align = str(cfg.align)
    assert manifests[align]["metrics"]["steps"] > 0
    assert manifests[align]["metrics"].get("step_0_gap", 0.0) <= 1e-5
    for stage, block in (("sft", cfg.sft), (align, vars(cfg)[align])):
        assert (store.folder(nodes[stage]) / "adapter").exists() == (block.adapter != "none")
    assert "verdict" in manifests["eval"]["metrics"]
    assert "</html>" in (store.folder(nodes["report"]) / "report.html").read_text()


def test_the_toy_preferences_can_all_be_used(tmp_path: Path) -> None:
    cfg: PreferenceFile = settings("recipe=zephyr_7b", "scale=toy").label
    labeler = Dataset(cfg, StageDir(tmp_path, lambda metrics, step: None))
    pool = labeler.pool({})
    judgements = list(labeler.judge_all(pool))
    assert (len(pool.prompts), len(judgements), pool.bad) == (64, 64, [])
    assert len(pool.candidates) == 128
