"""Tests of the distribution's name: `plumbline` on the package index is another project that must not be installed."""

import re
import tomllib
from pathlib import Path

import pytest

from stages.config import installation
from stages.config.installation import DISTRIBUTION, ROOT, checkout_project, install_command

FOREIGN = "plumbline"
# The name with extras or a version, as an argument of an installer, or as the name of a distribution.
NAMED = re.compile(
    rf"(?<![\w./-]){FOREIGN}\s*(\[|[=<>~!]=|@)"
    rf"|\b(pip3?|pipx|uv|poetry)\b[^\n`]* (install|download|add)\b[^\n`]*\s['\"]?{FOREIGN}(?![\w./-])"
    rf"|\b(version|distribution|requires|metadata)\(['\"]{FOREIGN}['\"]\)",
    re.IGNORECASE,
)
EXTRAS = re.compile(r"-e '\.\[([\w,]+)\]'|install_command\(['\"](\w+)['\"]\)")
FOLDERS = ("stages", "conf", "recipes", "docs", "tests", ".github", ".ci")
SUFFIXES = {
    "",
    ".py",
    ".md",
    ".toml",
    ".txt",
    ".yaml",
    ".yml",
    ".json",
    ".jinja",
    ".html",
    ".ipynb",
    ".sh",
    ".cfg",
}


def texts() -> dict[str, str]:
    """Return every text of the repository by its path."""
    paths = [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    files = (path for path in paths if path.is_file() and path.suffix in SUFFIXES)
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8", errors="ignore")
        for path in files
    }


def test_no_text_names_the_foreign_package_as_something_to_install() -> None:
    files = {
        name: text
        for name, text in texts().items()
        if name != str(Path(__file__).relative_to(ROOT))
    }
    assert {"pyproject.toml", "docs/index.md", "conf/label/judge.yaml", "Makefile"} <= files.keys()
    assert {name: match[0] for name, text in files.items() if (match := NAMED.search(text))} == {}


def test_the_project_has_the_name_that_the_code_uses() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION != FOREIGN
    assert "Private :: Do Not Upload" in project["classifiers"]
    assert checkout_project() == project


def test_every_extra_that_a_text_installs_exists() -> None:
    extras = checkout_project()["optional-dependencies"].keys()
    extra_names = {
        extra
        for text in texts().values()
        for pair in EXTRAS.findall(text)
        for extra in "".join(pair).split(",")
    }
    assert {"people", "qlora", "dev"} <= extra_names <= extras


def test_the_command_names_the_checkout_from_any_folder_and_the_distribution_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert install_command("people") == "pip install -e '.[people]'"
    monkeypatch.chdir(tmp_path)
    folder = install_command("people").removeprefix("pip install -e '").removesuffix("[people]'")
    assert Path(folder).resolve() == ROOT
    monkeypatch.setattr(installation, "ROOT", tmp_path)
    assert install_command("people") == f"pip install '{DISTRIBUTION}[people]'"
