"""The report: one page that needs nothing else, opened in a real browser, with hostile model text in it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stages import report
from stages.records import Candidate, load, save
from stages.store import Work
from tests.helpers import Chain, nodes, settings

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = (
    "<script>document.title = 'taken over'</script><img src=x onerror=\"document.title = 'taken over'\">{{ 7 * 7 }}"
)


@pytest.fixture
def page(chain: Chain, tmp_path: Path) -> Path:
    """A report in which every answer of DPO's is hostile."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    table = inputs["answer_dpo"] / "answers.parquet"
    answers = load(table, Candidate)
    for answer in answers:
        answer.text = HOSTILE
    save(table, answers, Candidate)
    folder = tmp_path / "report"
    folder.mkdir()
    report.run(settings("recipe=tiny").report, inputs, Work(folder, lambda m, s: None))
    return folder / "report.html"


def browse(page: Path, tmp_path: Path, *arguments: str) -> str:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-sync", "--disable-component-update", f"--user-data-dir={tmp_path / 'browser'}"]
    command = [str(CHROMIUM), *options, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_every_section_and_runs_nothing(page: Path, tmp_path: Path) -> None:
    dom = browse(page, tmp_path, "--dump-dom")
    assert "<title>Plumbline report</title>" in dom, "the model's script did not run"
    for section in ("results", "kinds", "answers", "curves", "tokens", "labels", "lineage"):
        assert f'<section id="{section}">' in dom
    assert "{{ 7 * 7 }}" in dom
    assert dom.count("<svg") >= 7


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_on_a_phone_or_a_desk(width: int, page: Path, tmp_path: Path) -> None:
    probe = (
        "<script>document.title = document.documentElement.scrollWidth <= innerWidth ? 'fits' : 'sticks out'</script>"
    )
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    assert "<title>fits</title>" in browse(page, tmp_path, f"--window-size={width},900", "--dump-dom")


def test_model_text_is_escaped_and_nothing_is_fetched(page: Path) -> None:
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", html), "self-contained"


def test_it_tells_lineage_with_commands_and_times(page: Path, chain: Chain) -> None:
    html = page.read_text()
    for node in nodes(chain.root)["report"].inputs.values():
        assert f'id="{node.fingerprint}"' in html
    assert "python run.py stage=dpo recipe=tiny" in html
    assert "rebuild=dpo" in html


def test_it_shows_a_training_example_token_by_token(page: Path, chain: Chain) -> None:
    tokens = json.loads((chain.folder("sft") / "token_example.json").read_text())
    assert [t["text"] for t in tokens if t["trained"]][-1] == "<|im_end|>"
    assert page.read_text().count('<span class="trained') == sum(t["trained"] for t in tokens)


def test_prompts_that_dpo_changed_come_first(chain: Chain) -> None:
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    shown = report.side_by_side(inputs, 5)
    assert len(shown) == 5
    differs = [s["passed"]["sft"] != s["passed"]["dpo"] for s in shown]
    assert differs == sorted(differs, reverse=True)
    assert shown == report.side_by_side(inputs, 5), "chosen by content"
