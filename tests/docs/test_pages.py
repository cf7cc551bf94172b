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

from stages.cli.settings import all_settings, settings_of
from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.sampling import Member
from stages.config.installation import ROOT
from stages.config.schema import RECIPES
from stages.preflight import constraints, machine_needs
from tests.helpers import refuse_unread, settings, slow_but

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
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
# Pages with keys of benchmarks and libraries.
OTHER_KEYS = ("benchmarks.md", "upgrading.md", "private-apis.md", "coming-from-trl.md")
HOW_TO = sorted((DOCS / "how-to").glob("*.md"))
MOST_WORDS = 27_500  # in all pages of docs/
CONFIGURATION = [*sorted((ROOT / "conf").rglob("*.yaml")), *sorted(RECIPES.glob("*.yaml"))]
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
MODULES = sorted(
    {
        words[0]
        for page in PAGES
        for words in commands(page, "python -m")
        if words[0].startswith("tests")
    }
)


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


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


def test_the_documentation_stays_short() -> None:
    assert (
        sum(
            len(re.findall(r"[^\W_][^\s|]*", page.read_text(encoding="utf-8")))
            for page in DOCS.rglob("*.md")
        )
        <= MOST_WORDS
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.parent == DOCS], ids=name_of
)
def test_a_page_begins_with_its_command(page: Path) -> None:
    if page.parent.name in ("how-to", "tutorials", "extending"):
        lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line]
        assert any(line.startswith(("```sh", "```bash")) for line in lines[1:4])


@pytest.mark.parametrize("page", HOW_TO, ids=name_of)
def test_a_paragraph_is_short(page: Path) -> None:
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=[-|#] ?)", text)]
    assert [part for part in paragraphs if len(part.split()) > 80] == []


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


def every_key() -> dict[str, set[str]]:
    """Return the keys of the configuration, with the options of groups; the name of a free dict ends in a dot."""

    of_listed = [*settings_of(Endpoint), *settings_of(Member)]
    types = {*all_settings(), *(setting.key for setting in of_listed)}
    keys: dict[str, set[str]] = {key: set() for key in types}
    free = [
        key
        for key in types
        if key.rpartition(".")[2] in ("lr_scheduler_kwargs", "options", "extra")
    ]
    keys |= {f"{key}.": set() for key in free}
    groups = {folder.name: folder for folder in (ROOT / "conf").iterdir() if folder.is_dir()} | {
        "recipe": RECIPES
    }
    return keys | {
        name: {path.stem for path in folder.glob("*.yaml")} for name, folder in groups.items()
    }


@pytest.mark.parametrize(
    "page", [page for page in [*SHOWN, *CONFIGURATION] if page.name not in OTHER_KEYS], ids=name_of
)
def test_every_key_that_is_named_exists(page: Path) -> None:
    """`sft=none`, `dpo.beta=…`, `launch.node_rank`: in prose and in code, in the comments of conf/ and of recipes."""
    keys = every_key()
    ends = {key.rpartition(".")[2] for key in keys if "." in key} - {""}
    text = page.read_text(encoding="utf-8")
    lines = (
        [line.partition("#")[2] for line in text.splitlines()]
        if page.suffix == ".yaml"
        else code(page)
    )
    wrong = []
    for line in lines:
        for key, equals, value in re.findall(
            r"(?<![\w./~-])\+*([a-z_]+(?:\.[a-z_0-9]+)*)(=?)([\w]*)", line
        ):
            free = any(key.startswith(prefix) for prefix in keys if prefix.endswith("."))
            named = equals or ("." in key and key.rpartition(".")[2] in ends)
            if not named or free or key.startswith("hydra"):
                continue
            if key not in keys or (value and keys[key] and value not in keys[key]):
                wrong.append(f"{key}{equals}{value}")
    assert wrong == []


def test_commands_are_found_and_a_sweep_stands_for_its_first_job() -> None:
    assert one_of_each(["dpo.beta=0.05,0.1", "dpo.loss_type=[sigmoid,sft]", "-m"]) == [
        "dpo.beta=0.05",
        "dpo.loss_type=[sigmoid,sft]",
    ]
    assert one_of_each(["dpo.beta=tag(log,interval(0.03,0.5))"]) == ["dpo.beta=0.03"]
    assert "stage=dpo dpo.beta=0.05" in RUNS
    assert any(
        command.startswith("stage=eval answer.split=validation hydra/sweeper=optuna")
        for command in RUNS
    )


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


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_runs_what_a_developer_runs(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    ran = [line for step in steps for line in step.get("run", "").splitlines()]
    named = {target for line in ran for target in re.findall(r"(?:^|&& )make ([a-z]+)", line)}
    assert named and named <= make_targets()
    assert all((ROOT / script).exists() for line in ran for script in re.findall(r"\.ci/\w+", line))


def test_the_tests_run_on_every_python_that_is_promised() -> None:
    matrices = [
        job.get("strategy", {}).get("matrix", {}) for path in WORKFLOWS for job in jobs(path)
    ]
    tested = {version for matrix in matrices for version in matrix.get("python", [])}
    assert tested == {"3.11", "3.12", "3.13"}


def jobs(path: Path) -> list[dict[str, dict[str, dict[str, list[str]]]]]:
    return [*yaml.safe_load(path.read_text())["jobs"].values()]


PROMISED_TEST = re.compile(r"`(\w+/test_\w+\.py)::(\w+)`")


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
