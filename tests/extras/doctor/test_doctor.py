"""Check that `stage=doctor` finds all damage."""

import shutil
from pathlib import Path

import pytest

from stages.config.exit_codes import ExitCode
from stages.extras.doctor.command import DoctorResult
from tests.cli.test_json import result
from tests.helpers import TINY, Chain, build, inside, refused
from tests.pipeline.test_damage import flip


def test_every_damage_is_named_with_the_command_that_mends_it(chain: Chain) -> None:
    sound = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert sound.returncode == 0, sound.stderr
    assert f"{sum(chain.count().values())} nodes (" in sound.stdout
    flip(chain.folder("data") / "examples.parquet")
    (chain.folder("pairs") / "pairs.parquet").unlink()
    manifest = chain.folder("label") / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    ran = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert ran.returncode == 1
    command = "To rebuild it: python run.py stage={0} recipe=tiny"
    lines = {line.split(": ")[0]: line for line in ran.stdout.splitlines()}
    torn = lines[str(chain.folder("data") / "examples.parquet")]
    assert command.format("data") in torn and torn.endswith("rebuild=data")
    assert lines[str(chain.folder("pairs") / "pairs.parquet")].endswith("rebuild=pairs")
    assert f" outputs={chain.root} " in torn, "this store is a copy, so the command must name it"
    assert f"outputs={chain.root} rebuild=label" in ran.stdout
    assert "error: 3 files of " in ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout


def test_a_folder_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos" / "0123456789ab.partial").mkdir(parents=True)
    message = refused(*TINY, f"outputs={tmp_path}", "stage=doctor")
    assert message.startswith(f"outputs={tmp_path} is not an artifact store")


def test_a_folder_that_is_not_the_node_of_its_name_is_named(chain: Chain) -> None:
    data = chain.folder("data")
    renamed = data.with_name("0123456789ab")
    shutil.copytree(data, renamed)
    empty = chain.root / "sft" / "0123456789ab"
    empty.mkdir()
    (data / "manifest.json").unlink()
    ran = inside(*TINY, f"outputs={chain.root}", "stage=doctor")
    assert ran.returncode == 1
    for folder in (data, renamed, empty):
        [line] = [each for each in ran.stdout.splitlines() if each.startswith(f"{folder} ")]
        assert "elete" in line, "a way out"
    build(chain.root, "stage=data")
    for folder in (renamed, empty):
        shutil.rmtree(folder)
    assert inside(*TINY, f"outputs={chain.root}", "stage=doctor").returncode == 0


@pytest.mark.extended
def test_in_an_empty_store_nothing_was_built(tmp_path: Path) -> None:
    inside(*TINY, f"outputs={tmp_path}", "stage=plan")  # it leaves a folder of Hydra's
    ran = inside(*TINY, f"outputs={tmp_path}", "stage=doctor")
    assert ran.returncode == 0, ran.stderr
    assert "nothing was built" in ran.stdout and "intact" not in ran.stdout


def test_damage_is_a_result_and_an_error(chain: Chain) -> None:
    outputs = f"outputs={chain.root}"
    assert result(DoctorResult, outputs, "stage=doctor")["damaged"] == []
    flip(chain.folder("data") / "examples.parquet")
    [line] = result(DoctorResult, outputs, "stage=doctor", code=ExitCode.failed)["damaged"]
    assert line.endswith("rebuild=data")
