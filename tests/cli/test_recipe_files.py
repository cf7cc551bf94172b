"""Tests of the user's recipes: chosen by path, or by name from recipes/ in the working directory."""

from pathlib import Path

import pytest

from stages.cli import recipe_layers
from stages.config.schema import RECIPES
from stages.store.sealed_json import OUTPUTS
from tests.helpers import forget_compositions, inside, refused, settings

OWN = "defaults: [tiny]\ndpo: {beta: 0.7}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with recipes of the user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OUTPUTS, str(tmp_path / "outputs"))
    forget_compositions()
    (tmp_path / "recipes").mkdir()
    for file in ("mine.yaml", "my own.yaml", "recipes/ours.yaml"):
        (tmp_path / file).write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("name", ["'my own.yaml'", "ours"])
def test_a_recipe_is_a_file_or_a_name(name: str) -> None:
    cfg = settings(f"recipe={name}", "tracker=none")
    assert cfg.dpo.beta == 0.7
    assert cfg.model.random_init, "the file is based on a built-in recipe"


def test_a_recipe_may_be_based_on_a_file(folder: Path) -> None:
    (folder / "top.yaml").write_text("defaults: [./mine.yaml]\nseed: 3\n")
    cfg = settings("recipe=./top.yaml")
    assert (cfg.seed, cfg.dpo.beta, cfg.model.random_init is None) == (3, 0.7, False)


def test_the_command_that_comes_next_has_the_path(folder: Path) -> None:
    ran = inside("stage=base", "recipe=./mine.yaml", "tracker=none", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "Next: python run.py stage=sft recipe=./mine.yaml\n" in ran.stdout
    assert not (folder / "run.py").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("typo", "dpo: {bata: 1}", "./typo.yaml: dpo.bata is not a setting. Did you mean 'beta'?"),
        ("broken", "a: [}", "./broken.yaml is not valid YAML: line 1"),
        ("list", "- a", "./list.yaml is not valid YAML: it has no KEY: VALUE."),
        ("hostile", "hydra: {run: {dir: x}}", "./hostile.yaml sets hydra.run. It may only set"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_by_its_path(
    name: str, content: str, message: str, folder: Path
) -> None:
    (folder / f"{name}.yaml").write_text(content)
    assert message in refused(f"recipe=./{name}.yaml")


def test_a_file_that_is_not_there_is_refused() -> None:
    assert refused("recipe=./nowhere.yaml").startswith("recipe=./nowhere.yaml ")
    assert refused("recipe=our").endswith("Did you mean 'ours'?")


@pytest.mark.extended
def test_a_name_means_one_recipe(folder: Path) -> None:
    built_in = (RECIPES / "tiny.yaml").read_bytes()
    (folder / "recipes" / "tiny.yaml").write_bytes(built_in)
    assert settings("recipe=tiny").model.random_init, "the same recipe, as in another checkout"
    (folder / "recipes" / "tiny.yaml").write_text(OWN.replace("tiny", "demo"))
    forget_compositions()
    message = refused("recipe=tiny")
    assert message.startswith("recipe=tiny: ") and message.endswith("recipe=./recipes/tiny.yaml")
    assert not settings("recipe=./recipes/tiny.yaml").model.random_init
    assert settings("recipe=ours").model.random_init, "a recipe is based on the built-in one"


def test_what_else_lies_in_recipes_is_in_nobodys_way(folder: Path) -> None:
    (folder / "recipes" / "latin.yaml").write_bytes(b"\xff\xfe")
    (folder / "recipes" / "folder.yaml").mkdir()
    (folder / "recipes" / "cake.yaml").write_text("[flour, sugar]")
    assert {"tiny", "ours"} <= recipe_layers.load_recipes("*").keys()
    assert refused("recipe=latin").startswith("recipes/latin.yaml is not valid YAML")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sft: {template: {resize: -7}}", "sft.template.resize=-7"),
        ("sft: {runtime: {nodes: '٣'}}", "sft.runtime.nodes=٣"),
        ("data: {sources: [{path: README.md, rows: '1_0'}]}", "data.sources.rows=1_0"),
    ],
)
def test_a_value_that_would_become_another_one_is_refused(
    text: str, problem: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "odd.yaml"
    recipe.write_text(f"{text}\n", encoding="utf-8")
    assert refused(f"recipe={recipe}").startswith(f"recipe={recipe}: {problem}: ")
