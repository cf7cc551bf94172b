"""Check that what README, CONTRIBUTING and docs/ name exists: files, links, commands, keys, modules, make targets."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from stages.config.installation import ROOT
from stages.preflight import constraints, machine_needs
from tests.helpers import refuse_unread, settings, slow_but

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\[[^]]*\]\((?!https?:)([^)\s]+)\)")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code(page: Path) -> Iterator[str]:
    """List the lines of code blocks, continued lines joined, and the code in backticks elsewhere."""
    blocks = re.split(r"^```.*\n", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for prose, block in zip(blocks[::2], [*blocks[1::2], ""], strict=True):
        yield from (" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", prose))
        yield from block.replace("\\\n", " ").splitlines()


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """List the arguments of every command of this program that a page shows in full."""
    for line in code(page):
        words = shlex.split(line, comments=True) if program in line else []
        if " ".join(words[: len(program.split())]) == program and not any(
            "…" in word for word in words
        ):
            yield words[len(program.split()) :]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page, made of its headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def one_of_each(arguments: list[str]) -> list[str]:
    """Return the overrides of the first job of a sweep, and the overrides of other commands unchanged."""
    first = []
    for override in OverridesParser.create().parse_overrides(
        [word for word in arguments if word != "-m"]
    ):
        if not override.is_sweep_override():
            first.append(override.input_line)
        elif isinstance(sweep := override.value(), IntervalSweep):
            first.append(f"{override.get_key_element()}={sweep.start}")
        else:
            first.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
    return [str(line) for line in first]


# test_extending.py and test_faults.py run the commands of the others
SHOWN = [page for page in PAGES if page.parent.name != "extending" and page.name != "faults.md"]
BY_PAGE = [
    [
        shlex.join(words)
        for words in commands(page, "python run.py")
        if not "".join(words).startswith("--help")
    ]
    for page in SHOWN
]
RUNS = sorted({line for lines in BY_PAGE for line in lines})
FIRST = {lines[0] for lines in BY_PAGE if lines}
# whose commands hold at the commit beside them, as test_published.py checks
PUBLISHED = [DOCS / "explanation" / f"{name}.md" for name in ("results", "tuning", "benchmarks")]
MODULES = sorted(
    {
        words[0]
        for page in PAGES
        if page not in PUBLISHED
        for words in commands(page, "python -m")
        if words[0].startswith("tests")
    }
)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_every_place_that_the_readme_names_is_there() -> None:
    section = README.read_text(encoding="utf-8").split("## Where things are")[1].split("\n## ")[0]
    places = [
        place
        for place in re.findall(r"`([^`]+)`", section)
        if "/" in place or place.endswith(".py")
    ]
    assert len(places) > 15
    assert [place for place in places if not [*ROOT.glob(place)]] == []


def test_every_page_has_a_place_in_the_site() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = re.findall(r"[\w/-]+\.md", str(site["nav"]))
    assert sorted(pages) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.extended
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    built = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Train on your own preferences" in (
        tmp_path / "site" / "how-to" / "own-preferences.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", slow_but(RUNS, *FIRST))
def test_every_command_composes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "one of the reader's")
    for plugin in re.findall(r"hydra/(?:sweeper|launcher)=(\w+)", command):
        pytest.importorskip(
            f"hydra_plugins.hydra_{plugin}_{'sweeper' if 'sweeper=' in command else 'launcher'}"
        )
    # every extra is installed
    for module in (constraints, machine_needs):
        monkeypatch.setattr(module, "find_spec", lambda package: package)
    typed = one_of_each(shlex.split(command))
    cfg = settings(*typed)
    constraints.validate_config(cfg)
    refuse_unread(cfg, typed)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_that_is_to_be_run_is_there(module: str) -> None:
    assert importlib.util.find_spec(module)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_knows_what_it_is_asked_for(page: Path) -> None:
    assert {
        target for words in commands(page, "make") for target in words if "=" not in target
    } <= make_targets()


PROMISED_TEST = re.compile(r"`((?:\w+/)+test_\w+\.py)::(\w+)`")


@pytest.mark.parametrize("name", ["guarantees.md", "security.md"])
def test_every_promise_names_tests_that_are_there(name: str) -> None:
    page = (DOCS / "explanation" / name).read_text(encoding="utf-8")
    promises = re.findall(r"^- .*(?:\n(?!\n|- |#).*)*", page, flags=re.MULTILINE)
    assert promises
    assert [promise for promise in promises if not PROMISED_TEST.search(promise)] == []
    for file, test in PROMISED_TEST.findall(page):
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (
            f"{file}::{test}"
        )


def test_the_core_is_read_in_an_afternoon() -> None:
    page = DOCS / "explanation" / "how-it-works.md"
    files = {ROOT / word for word in code(page) if word.endswith(".py") and "/" in word}
    files.add(ROOT / "run.py")
    lines = [len(file.read_text(encoding="utf-8").splitlines()) for file in files]
    assert len(files) <= 25
    assert sum(lines) <= 5_000
