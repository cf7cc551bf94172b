"""Tests of the command line: its help, its speed, and every mistake reported in one line."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from stages.cli import main
from stages.cli.explain import explain
from stages.cli.resolve import resolve_precision
from stages.config.blocks.training import SFT
from stages.config.choices import Precision
from stages.config.commands import COMMANDS
from stages.config.installation import ROOT
from stages.config.limits import ONLY_PIPELINE_SETS, iterate_values
from stages.config.stage_table import Target
from stages.preflight import constraints, machine_needs
from tests.budgets import spent
from tests.helpers import TINY, for_hydra, inside, needing, refused, settings

NO_TESTS = ("data.tasks.test=0", "data.tasks.unseen_phrasings=0", "data.tasks.unseen_tasks=0")
NOTHING_MEASURES = (*NO_TESTS, "pairs.validation_fraction=0")


def one_line(*arguments: str, run: Callable[..., CompletedProcess[str]] = inside) -> str:
    """Return the error line of a command that must fail with a status, one line on stderr and no traceback."""
    result = run("tracker=none", *arguments)
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr + result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_help_is_instant() -> None:
    """A machine's pace may halve within a minute, so the reference is taken on both sides: Hydra's import.

    Help takes four to six times as long as that import; loading torch would take another eight to twelve.
    """
    imports = ("-c", "import hydra._internal.hydra, hydra._internal.config_loader_impl, yaml")
    times = [spent()]
    for arguments in (imports, ("run.py", "--help"), imports):
        subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
        times.append(spent())
    before, helping, after = (end - start for start, end in pairwise(times))
    assert helping < 5 * (before + after)


@pytest.mark.extended
def test_help_lists_stages_groups_and_recipes() -> None:
    page = inside("--help").stdout
    assert all(re.search(rf"\b{stage}\b", page) for stage in (*Target, *COMMANDS))
    assert re.search("^model: .*smollm2_135m.*tiny", page, re.MULTILINE)
    assert re.search("^recipe: .*demo", page, re.MULTILINE)


@pytest.mark.extended
def test_an_option_may_stand_before_or_behind_what_implies_an_override() -> None:
    overrides = ["label=dataset", f"label.path={ROOT / 'docs/examples/preferences.jsonl'}"]
    option = ["--cfg", "job"]
    for line in ([*overrides, *option], [*option, *overrides]):
        ran = inside(*line)
        assert ran.returncode == 0, ran.stderr
        assert "strategy: all" in ran.stdout


def test_help_on_a_block_has_its_keys_with_types_defaults_and_comments() -> None:
    page = inside("--help=sft").stdout
    assert "sft=none" in page
    (line,) = [line for line in page.splitlines() if line.startswith("sft.adapter ")]
    assert "none" in line and "qlora, continued; " in line and "low-rank adapter" in line
    named = {".".join(line.split()[0].split(".")[:2]) for line in page.splitlines()}
    assert {
        f"sft.{field.name}" for field in fields(SFT) if ONLY_PIPELINE_SETS not in field.metadata
    } <= named
    assert inside("--help=sftt").stderr.endswith("Did you mean 'sft'?\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stage=dop",), "stage=dop"),
        (("dpo.beta=abc",), "dpo.beta=abc: this value is not accepted. Accepted: number"),
        (("sft.max_steps=100",), "'epochs'"),
        (("wandb_project=mine",), "tracker.project"),
        (("tracker=[none,wanbd]",), "Did you mean 'wandb'?"),
        (("tracker=wandb,none",), "key=[value1,value2]"),
        (("model=tinny",), "Did you mean 'tiny'?"),
        (("model=3",), "model=3 does not exist"),
        (("sft.trainer.weight_decai=0.1",), "Did you mean 'weight_decay'?"),
        (("sft.trainer.output_dir=x",), "the sft stage sets"),
        (("dpo.batch_size=10", "dpo.runtime.micro_batch=4"), "dpo.batch_size=10: "),
        (("data=file",), "data.path=FILE"),
        (("model.path=nowhere.gguf",), "model.path=nowhere.gguf: there is no such file"),
        (("label=dataset",), "Set data.path"),
        (("data.sources=[{pth: x}]",), "Did you mean 'path'?"),
        (("model.path=some/model-1.5B",), "nor in the hub's"),
        (("+dpo.bata=1",), "Did you mean 'beta'?"),
        (("dpo.loss_type=[exo_pair]",), "dpo.loss_weights=[1.0, 1.0]: 1 losses"),
        (("model=tiny", "model.path=x"), "exclude each other"),
        (("outside=[{path: README.md}]",), "outside[0].check=null: a test set needs one"),
        (("recipe=tiny", *NOTHING_MEASURES, "data.tasks.rephrased=9"), "(data.tasks.test)"),
        (("align=none", *NO_TESTS), "(eval/judged=judge)"),
        (("align=none", "stage=label"), "Set align=dpo"),
        (("eval.judged.prompts=9",), "or eval/judged=judge"),
        (("eval/judged=judge",), "eval.judged.endpoints=[{base_url"),
        needing(
            "human",
            ("eval/judged=human", "eval.judged.against=[policy]"),
            "eval.judged.against[0]=policy: ",
        ),
        needing(
            "human",
            ("eval/judged=human", "eval.judged.against=[no/such/folder]"),
            "eval.judged.against[0]=no/such/folder",
        ),
        (("eval.judged.labeler=dataset",), "eval.judged.labeler=dataset: "),
        (("seeds=[0]",), "seeds=[0] and seed=0"),
        (("seeds=[1]", "sft.seed=5", "sample.seed=5", "dpo.seed=5"), "set seeds=[]"),
        (("data.sources.path=x",), "'data.sources=[…]'"),
        (("model=someone/a-model",), "type model.path=someone/a-model"),
        (("label=dataset", "label.path=x", "label.columns=[a]"), "Accepted: mapping"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        main, "build", lambda *_: pytest.fail("something is built before the error")
    )
    assert message in refused("tracker=none", f"outputs={tmp_path}", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # refused by Hydra while it composes
        (("dpo.bata=1",), "dpo.bata is not a setting. Did you mean 'beta'?"),
        (("~dpo",), "error: ~dpo: nothing can be deleted"),  # refused before Hydra reads it
        (("seeds=[größe]",), "error: seeds=[größe]:"),  # refused by Hydra's grammar
    ],
)
def test_on_the_command_line_too(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in one_line(f"outputs={tmp_path}", *arguments)


def test_without_a_package_the_error_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "find_spec", lambda package: None)
    monkeypatch.setattr(machine_needs, "find_spec", lambda package: None)
    assert refused(*TINY, "dpo.adapter=qlora").endswith("pip install -e '.[qlora]'.")


def test_a_gpu_without_memory_is_told_with_the_ways_out() -> None:
    try:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none."
        )
    except torch.OutOfMemoryError as error:
        line = explain(error)
    assert (
        line is not None and line.startswith("CUDA out of memory. Lower ") and "device=cpu" in line
    )


def test_a_store_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "Not a directory" in one_line(f"outputs={file}")


def test_a_path_in_the_home_folder_needs_no_quotes() -> None:
    line = for_hydra("data.sources=[{path: ~/x.jsonl}, {path: '~/y'}]", "model.path=~/m")
    assert "data.sources=[{path: \"~/x.jsonl\"}, {path: '~/y'}]" in line
    assert 'model.path="~/m"' in line


@pytest.mark.parametrize("path", ["~/my data/x.jsonl", "~root/x.jsonl", "~/a"])
def test_a_path_in_a_home_folder_may_have_spaces_and_a_user(path: str) -> None:
    typed = ("data=file", f"data.path={path}", f"data.sources=[{{path: {path} }}]")
    assert {source.path for source in settings(*TINY, *typed).data.sources} == {path}


def test_every_block_names_the_precision_of_this_machine() -> None:
    cfg = settings(*TINY, "precision=auto")
    resolve_precision(cfg)
    values = {
        name: value for name, _, value in iterate_values(cfg, "") if name.endswith(".precision")
    }
    assert [name for name, value in values.items() if value is Precision.auto] == []
