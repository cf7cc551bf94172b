"""YAML that others wrote is bounded, whoever reads it: a few lines that stand for billions of values end in one line."""

import time
from pathlib import Path

import pytest
import yaml

from stages.cli.explain import yaml_problem
from stages.cli.recipe_layers import load_recipe_file
from stages.config.errors import UserError
from stages.formats.phrased import parse_task
from stages.store.bounded_yaml import DEEPEST, MOST_BYTES, read_yaml_text, require_bounded
from stages.store.licences import card_header, data_licence
from tests.helpers import refused

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: &x [1,2,3], y: *x}\n" + "".join(
    f"{name}: &{name} {{p: *{before}, q: *{before}, r: *{before}, s: *{before}}}\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
BEYOND = {
    "aliases": (BOMB, "line 6"),
    "aliases in mappings": (MERGED, "line "),
    "an alias of itself": ("a:\n  &a [*a]\n", "line 2"),
    "lists in lists": (f"a:\n  {'[' * 1500}", "line 2"),
    "mappings in mappings": ("\n".join(" " * i + "a:" for i in range(500)), f"line {DEEPEST}"),
    "a long key": (f"a: 1\n? {'k' * 5000}\n: 1\n", "line 2"),
    "many values": (f"a: [{'1,' * 100_001}]\n", "line 1"),
    "many bytes": (f"a: {'x' * MOST_BYTES}\n", "bytes"),
}


@pytest.mark.parametrize(("text", "place"), BEYOND.values(), ids=BEYOND)
def test_every_reader_refuses_it_at_once_with_its_line(
    text: str, place: str, tmp_path: Path
) -> None:
    file = tmp_path / "beyond.yaml"
    file.write_text(text)
    began = time.process_time()
    assert place in yaml_problem(file)
    with pytest.raises(UserError, match=r"^task\.yaml: "):
        parse_task(text, "task.yaml")
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{text.rstrip()}\n---\n")
    if place != "bytes":  # a card may be long
        assert data_licence(tmp_path) is None
    assert time.process_time() - began < 5


@pytest.mark.extended
def test_a_command_with_such_a_file_ends_at_once_and_names_it(tmp_path: Path) -> None:
    file = tmp_path / "beyond.yaml"
    file.write_text(BOMB)
    began = time.process_time()
    line = refused(f"recipe={file}")
    assert str(file) in line and "line 6" in line
    assert time.process_time() - began < 10


@pytest.mark.parametrize("text", ["9" * 5000, "!!python/object:os.system x"])
def test_a_value_that_yaml_cannot_build_is_one_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(f"a: {text}\n")
    assert yaml_problem(file)


def test_aliases_of_few_values_stand_for_them(tmp_path: Path) -> None:
    require_bounded("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}\n")
    with pytest.raises(yaml.YAMLError, match="line 2: an alias"):
        require_bounded("a: &a {x: 1}\nb: *a\n", may_alias=False)
    recipe = tmp_path / "twice.yaml"
    recipe.write_text("sft: &few {epochs: 2}\ndpo: {<<: *few, beta: 0.3}\n")
    assert load_recipe_file(recipe).dpo == {"epochs": 2, "beta": 0.3}
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: &l mit\nlicense_name: *l\n---\n# Text\n---\n")
    assert card_header(card) == {"license": "mit", "license_name": "mit"}


def test_a_device_is_no_yaml() -> None:
    with pytest.raises(yaml.YAMLError, match="regular"):
        read_yaml_text(Path("/dev/zero"))
