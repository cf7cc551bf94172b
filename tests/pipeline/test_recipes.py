"""Tests of every recipe: composed unchanged for every stage, and run to its report at toy scale."""

import re
import shlex
from dataclasses import replace

import pytest

from stages.cli import main
from stages.config.choices import Command, Split
from stages.config.schema import RECIPES, Config, Target
from stages.pipeline.graph import wire_graph
from stages.preflight import constraints, machine_needs
from stages.store.source_files import HUB_ID
from stages.store.store import Store
from tests.helpers import common, composed, settings

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# they run on files of the user's alone: test_own_prompts.py, test_examine.py
OF_OWN_FILES = ("from_prompts", "own_reward", "rejection_sampling", "examine")


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
