"""Tests of the wheel, installed in a new environment with this one's libraries, and run in another folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from stages.config.installation import DISTRIBUTION, PACKAGE, ROOT, checkout_project
from stages.config.schema import CONF, RECIPES
from stages.store.sealed_json import OUTPUTS
from tests.helpers import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
    )
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def repository(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foreign git repository that contains the environment, with a commit that is not Plumbline's."""
    folder = tmp_path_factory.mktemp("repository")
    as_somebody = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    for words in (["init", "-q"], [*as_somebody, "commit", "-q", "--allow-empty", "-m", "Theirs"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    environment = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(environment / "bin" / "python"),
        "install",
        "-q",
    ]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return folder


def plumbline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `plumbline …` in a folder below the environment's folder."""
    folder.mkdir(exist_ok=True)
    environment = {
        key: value for key, value in os.environ.items() if key not in (OUTPUTS, "PYTHONPATH")
    }
    program = folder.parent / ".venv" / "bin" / "plumbline"
    options = {
        "capture_output": True,
        "text": True,
        "cwd": folder,
        "env": environment,
        "timeout": 600,
    }
    ran = subprocess.run([str(program), *arguments], check=False, **options)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_it_holds_one_package_with_all_that_a_checkout_has(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [
        path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    files = [str(path.relative_to(ROOT)) for path in files]
    settings = [path for folder in (CONF, RECIPES) for path in folder.rglob("*.yaml")]
    files += [f"stages/{path.relative_to(ROOT)}" for path in settings]
    pages = ("configuration", "data-formats", "stages-and-files")
    assert names == {*files, *(f"stages/docs/reference/{name}.md" for name in pages)}


def test_the_whole_chain_runs_from_an_empty_folder_and_is_there_the_second_time(
    repository: Path,
) -> None:
    folder = repository / "empty"
    first = plumbline(folder, *TINY)
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    assert (folder / "outputs" / "report.html").exists()
    manifests = {path: path.stat().st_mtime_ns for path in folder.glob("outputs/*/*/manifest.json")}
    assert len(manifests) > 9
    for path in manifests:
        manifest = json.loads(path.read_text())
        assert manifest["command"].startswith("plumbline stage=")
        assert manifest["git"] == {"commit": None, "dirty": False}
        assert manifest["versions"][DISTRIBUTION] == checkout_project()["version"]
    assert "python run.py" not in first.stdout
    assert "edited" not in first.stdout + first.stderr

    plumbline(folder, *TINY)
    assert {
        path: path.stat().st_mtime_ns for path in folder.glob("outputs/*/*/manifest.json")
    } == manifests
    plan = plumbline(folder, *TINY, "stage=plan").stdout
    assert "cached" in plan and "to build" not in plan
    elsewhere = plumbline(folder, *TINY, "stage=plan", "outputs=other").stdout
    assert "not measured yet (" not in elsewhere, (
        "the folder's own store tells how fast this machine is"
    )
