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

from stages.cli import compose, main
from stages.cli.explain import explain
from stages.config.blocks.training import SFT
from stages.config.choices import Command, Precision
from stages.config.installation import DISTRIBUTION, ROOT, checkout_project
from stages.config.limits import COMPUTED, iterate_values
from stages.config.schema import RECIPES, Target
from stages.preflight import constraints, machine_needs
from tests.budgets import spent
from tests.helpers import TINY, command, inside, refused, settings

NO_TESTS = ("data.tasks.test=0", "data.tasks.unseen_phrasings=0", "data.tasks.unseen_tasks=0")
NOTHING_MEASURES = (*NO_TESTS, "pairs.validation_fraction=0")
ENSEMBLE = "eval.judged.members=[{labeler: verifier}, {labeler: reward_model}]"


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
def test_help_lists_stages_groups_and_recipes_on_one_screen() -> None:
    ran = command("--help")
    groups = dict(re.findall(r"^(\w+): (.*)$", ran.stdout, flags=re.MULTILINE))
    assert {"embedded", "smollm2_135m", "tiny"} <= set(groups["model"].split(", "))
    assert {"demo", "smollm2_135m", "tiny"} <= set(groups["recipe"].split(", "))
    for stage in (*Target, *Command):
        assert re.search(rf"\b{stage}\b", ran.stdout)
    assert len(ran.stdout.splitlines()) <= 60
    examples = re.findall(r"^\S.*  python run\.py ?(.*)$", ran.stdout, flags=re.MULTILINE)
    assert len(examples) == 6
    for example in examples:
        compose.normalise(example.split())


@pytest.mark.extended
def test_an_option_may_stand_before_or_behind_what_implies_an_override() -> None:
    overrides, option = (
        ["label=dataset", f"label.path={ROOT / 'docs/examples/preferences.jsonl'}"],
        ["--cfg", "job"],
    )
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
    assert {f"sft.{field.name}" for field in fields(SFT) if COMPUTED not in field.metadata} <= named
    template = inside("--help=template").stdout
    assert (
        "template=chatml" in template
        and "<|im_start|>" in template
        and "sft.template.path" in template
    )
    assert "[{path: FILE, rows: 200}]" in inside("--help=eval.retention").stdout
    assert inside("--help=sftt").stderr.endswith("Did you mean 'sft'?\n")


def test_the_version_is_ours_and_of_the_libraries() -> None:
    lines = command("--version").stdout.splitlines()
    assert lines[0].startswith(f"{DISTRIBUTION} {checkout_project()['version']} (commit ")
    assert {"python", "torch", "transformers", "trl"} <= {
        library.split()[0] for library in lines[1].split(", ")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stage=dop",), "stage=dop"),
        (("dpo.beta=abc",), "dpo.beta=abc: this value is not accepted. Accepted: number"),
        (("--seed=3",), "Type seed=3."),
        (("sft.max_steps=100",), "'epochs'"),
        (("wandb_project=mine",), "tracker.project"),
        (("tracker=[wandb,mlfow]",), "Did you mean 'mlflow'?"),
        (("tracker.mlfow=true",), "Did you mean 'mlflow'?"),
        (("tracker=wandb,mlflow",), "'tracker=[wandb,mlflow]'"),
        (("tracker.name=wandb",), "tracker.name is not a setting"),
        (("model=tinny",), "Did you mean 'tiny'?"),
        (("sft.trainer.weight_decai=0.1",), "Did you mean 'weight_decay'?"),
        (("sft.trainer.output_dir=x",), "the sft stage sets"),
        (
            ("dpo.loss_type=[sigmoid,sft]", "dpo.loss_weights=[1.0]"),
            "dpo.loss_weights has 1 numbers",
        ),
        (("dpo.batch_size=10", "dpo.runtime.micro_batch=4"), "dpo.batch_size=10: "),
        (("dpo.runtime.micro_batch=axuto",), "dpo.runtime.micro_batch=axuto: "),
        (("dpo.adapter=lora", "dpo.runtime.gradient_checkpointing=selective"), "Set none or full"),
        (("sft.runtime.gradient_checkpointing=selektive",), "selective"),
        (("sft.runtime.micro_batch=0",), "sft.runtime.micro_batch=0: the value must be from"),
        (
            ("dpo.runtime.token_budget=99", "dpo.runtime.micro_batch=4"),
            "dpo.runtime.token_budget=99: ",
        ),
        (
            ("dpo.loss_type=[aot]", "dpo.loss_weights=null", "dpo.runtime.micro_batch=auto"),
            "Set a number",
        ),
        (("data=file",), "data.path=FILE"),
        (("model.path=nowhere.gguf",), "model.path=nowhere.gguf: there is no such file"),
        (("label=dataset",), "Set data.path"),
        (("data.sources=[{pth: x}]",), "Did you mean 'path'?"),
        (("model.path=some/model-1.5B",), "nor in the hub's"),
        (("+dpo.bata=1",), "Did you mean 'beta'?"),
        (("dpo.trainer.sync_ref_model=true",), "the dpo stage sets"),
        (("dpo.loss_type=[]",), "Type dpo.loss_type=[sigmoid]"),
        (("dpo.loss_type=[exo_pair]",), "dpo.loss_weights has 2 numbers"),
        (("dpo.loss_type=[exo_pair]", "dpo.loss_weights=null"), "add dpo.trainer.label_smoothing"),
        (
            ("dpo.loss_type=[aot]", "dpo.loss_weights=null", "dpo.trainer.use_weighting=true"),
            "dpo.trainer.use_weighting: ",
        ),
        (("sft.runtime.device=tpu",), "tpu is not a known value. Did you mean 'cpu'"),
        (("model=tiny", "model.path=x"), "exclude each other"),
        (("outside=[{path: nowhere.jsonl, check: label}]",), "outside[0].path=nowhere.jsonl"),
        (("outside=[{path: README.md}]",), "outside[0].check=null: a test set needs one"),
        (("seeds=[1]", "sft.seed=5", "sample.seed=5", "dpo.seed=5"), "set seeds=[]"),
        (NOTHING_MEASURES, "(data.tasks.test)"),
        (
            ("recipe=tiny", *NOTHING_MEASURES, "data.tasks.open_plain=9", "data.tasks.rephrased=9"),
            "(data.tasks.test)",
        ),
        (
            (
                "recipe=tiny",
                "answer.split=validation",
                "data.tasks.validation=0",
                "pairs.validation_fraction=0",
            ),
            "(data.tasks.validation)",
        ),
        (("align=none", *NO_TESTS), "(eval/judged=judge)"),
        (("align=none", "sft=none"), "eval.judged.against=[FOLDER]"),
        (("align=none", "label=human"), "align=none leaves preferences out"),
        (("align=none", "stage=label"), "Set align=dpo"),
        (("eval.judged.prompts=9",), "or eval/judged=judge"),
        (("eval/judged=judge",), "eval.judged.endpoints=[{base_url"),
        (("eval/judged=reward_model",), "eval.judged.path=FOLDER"),
        (
            ("control=false", "eval/judged=human", "eval.judged.against=[control]"),
            "eval.judged.against[0]=control: not in this run. Use base",
        ),
        (
            (
                "eval/judged=ensemble",
                "eval.judged.source=[{path: docs/examples/prompts.jsonl}]",
                ENSEMBLE,
            ),
            "have no checks. Leave verifier out",
        ),
        (
            ("eval/judged=human", "eval.judged.against=[policy]"),
            "eval.judged.against[0]=policy: ",
        ),
        (
            ("eval/judged=human", "eval.judged.against=[no/such/folder]"),
            "eval.judged.against[0]=no/such/folder",
        ),
        (("eval.judged.labeler=dataset",), "eval.judged.labeler=dataset: "),
        (("seeds=[0]",), "seeds=[0] and seed=0"),
        (
            ("data=file", "data.sources=[{path: README.md}]", NOTHING_MEASURES[-1]),
            "(data.tasks.test)",
        ),
        (("data.sources.path=x",), "'data.sources=[{path: x}]'"),
        (
            ("label=judge", "label.endpoints.model=m"),
            "'label.endpoints=[{model: m}]'",
        ),
        (("seeds.a=1",), "'seeds=[1]'"),
        (("model=someone/a-model",), "type model.path=someone/a-model"),
        (("reward.lr=1e-5",), "Did you mean 'learning_rate'?"),
        (("dpo.beta=null",), "dpo.beta=null: this value is not accepted"),
        (("label=dataset", "label.path=x", "label.columns=[a]"), "Accepted: mapping"),
        (("arms=[ppo]",), "Accepted: list of dpo, kto, grpo"),
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
        (("labels=judge",), "Did you mean 'label'?"),
        # refused by Hydra while it composes
        (("dpo.bata=1",), "dpo.bata is not a setting. Did you mean 'beta'?"),
        # by our checks; needs no plus sign
        (("dpo.trainer.learning_rate=1",), "Set dpo.learning_rate instead"),
        # refused by OmegaConf while it resolves
        (("dpo.beta=${x}",), "error: dpo.beta: Interpolation key 'x' not found"),
        (("~dpo",), "error: ~dpo: this block"),  # refused before Hydra reads it
        (("seeds=[größe]",), "error: seeds=[größe]:"),  # refused by Hydra's grammar
        (
            ("stage=sample", "label=dataset", "label.path=README.md"),
            "label=dataset does not need this stage",
        ),  # refused by the graph
    ],
)
def test_on_the_command_line_too(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    assert message in one_line(f"outputs={tmp_path}", *arguments)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_without_the_package_of_4_bit_weights_the_error_names_it(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraints, "find_spec", lambda package: None)
    message = (
        f"{stage}.adapter=qlora needs bitsandbytes for 4-bit weights: pip install -e '.[qlora]'."
    )
    assert refused(*TINY, f"{stage}.adapter=qlora") == message


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "trackio"])
def test_without_the_package_of_a_tracker_the_error_names_its_extra(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_needs, "find_spec", lambda package: None)
    line = refused(*TINY, f"tracker.{tracker}=true")
    assert line.startswith(f"tracker={tracker} needs ")
    assert f"pip install -e '.[{tracker}]'" in line


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mistyped", "dpo: {bata: 1}\n", "Did you mean 'beta'?"),
        ("broken", "dpo: {beta: [}\n", "recipes/broken.yaml is not valid"),
    ],
)
def test_a_broken_recipe_is_named_and_leaves_the_others_usable(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    recipe = RECIPES / f"{name}.yaml"
    recipe.write_text(content)
    try:
        assert message in one_line(f"recipe={name}", f"outputs={tmp_path}")
        assert (
            inside("recipe=tiny", "stage=plan", "tracker=none", f"outputs={tmp_path}").returncode
            == 0
        )
    finally:
        recipe.unlink()


def test_a_store_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "Not a directory" in one_line(f"outputs={file}", run=command)
    assert "No such file or directory" in one_line("outputs=/proc/nowhere")


def test_a_store_in_the_home_folder_is_found_without_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ran = inside("stage=plan", "recipe=tiny", 'outputs="~/store"', "tracker=none", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_path_in_the_home_folder_needs_no_quotes() -> None:
    line = compose.normalise(["data.sources=[{path: ~/x.jsonl}, {path: '~/y'}]", "model.path=~/m"])
    assert "data.sources=[{path: \"~/x.jsonl\"}, {path: '~/y'}]" in line
    assert 'model.path="~/m"' in line


def test_one_configuration_is_shown_and_no_sweep() -> None:
    assert "-m composes several" in one_line("stage=sft", "--cfg", "job", "-m")


def test_multirun_stands_anywhere_on_the_line(tmp_path: Path) -> None:
    ran = inside(
        "stage=plan", "-m", "recipe=tiny", "dpo.beta=0.1,0.2", "tracker=none", f"outputs={tmp_path}"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("To build") == 2


def test_every_block_names_the_precision_of_this_machine() -> None:
    cfg = settings(*TINY, "precision=auto")
    compose.resolve_precision(cfg)
    values = {
        name: value for name, _, value in iterate_values(cfg, "") if name.endswith(".precision")
    }
    assert [name for name, value in values.items() if value is Precision.auto] == []
    assert values["benchmark.precision"] is values["answer.precision"]
