"""The page of a run: there from the first second, true to the end, and honest about a run that was killed."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.commands.expected_costs import Forecast
from stages.commands.run_result import page_address
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.pages.live import SILENT, LivePage
from stages.pages.runs import link_from_root, note_sweep
from stages.store.store import Store
from stages.store.workspace import Progress
from tests.browser import CHROMIUM, browser, page_faults
from tests.helpers import Chain, nodes

COMMAND = "python run.py recipe=tiny"


def live_page(root: Path, *of_sweep: str) -> LivePage:
    planned = nodes(root)
    left = Forecast(planned, Store(root)).seconds_left
    target = [planned["report"]]
    return LivePage(Store(root), planned, target, COMMAND, "recipe: tiny", left, *of_sweep)


def heading(root: Path) -> str:
    return re.findall(r"<h1>(.*?)</h1>", (root / "report.html").read_text())[0]


def test_it_is_there_before_anything_is_built_and_names_what_runs(tmp_path: Path) -> None:
    page = live_page(tmp_path)
    with page:
        assert heading(tmp_path) == "Starting"
        page.tell(nodes(tmp_path)["data"], "done")
        page.tell(nodes(tmp_path)["sft"], "running")
        assert heading(tmp_path) == "Running: SFT"
        html = (tmp_path / "report.html").read_text()
        assert '<meta http-equiv="refresh"' in html and COMMAND in html
        assert '<li class="running"><b>SFT</b>' in html and '<li class="waiting"><b>DPO</b>' in html
    assert '<meta http-equiv="refresh"' not in (tmp_path / "report.html").read_text()


def test_a_page_that_failed_once_is_there_once_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = live_page(tmp_path)
    with monkeypatch.context() as faulty:
        faulty.setattr(page, "write", fail)
        page.show()
    assert page_address(page) is None
    page.show()
    assert page_address(page) == page.address and page.address.exists()


def fail(*_: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle", "report.html")


def test_a_failed_run_says_where_and_why(tmp_path: Path) -> None:
    page = live_page(tmp_path)
    with pytest.raises(UserError), page:
        page.tell(nodes(tmp_path)["dpo"], "running")
        raise UserError("no <pairs> left")
    html = (tmp_path / "report.html").read_text()
    assert heading(tmp_path) == "Stopped: no &lt;pairs&gt; left"
    assert '<li class="failed"><b>DPO</b>' in html


def test_a_finished_run_is_its_report_and_every_run_is_listed(chain: Chain, tmp_path: Path) -> None:
    with live_page(chain.root) as page:
        for node in page.nodes:
            page.tell(node, "reused")
    report = (chain.folder("report") / "report.html").read_bytes()
    assert 'href="../../index.html"' in report.decode()
    report = link_from_root(report)
    assert (chain.root / "report.html").read_bytes() == report
    planned = nodes(chain.root, "dpo.seed=7")
    left = Forecast(planned, Store(chain.root)).seconds_left
    target = [planned["dpo"]]
    other = LivePage(Store(chain.root), planned, target, "python run.py", "recipe: tiny", left)
    with other:
        pass
    assert "<h1>Finished.</h1>" in other.file.read_text()
    assert (chain.root / "report.html").read_bytes() == report, "another target has its own page"
    index = (chain.root / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert links == [f"pages/{other.file.name}", f"report/{page.target.fingerprint}/report.html"]
    assert all((chain.root / link).exists() for link in links), "no page of another run is lost"
    assert page_faults(chain.root / "index.html", tmp_path) == []


def test_without_a_forecast_the_page_shows_progress_and_no_end(tmp_path: Path) -> None:
    page = live_page(tmp_path)
    with page, Progress(100, "sft", "step") as progress:
        progress.done = 50
        page.tell(nodes(tmp_path)["sft"], "running")
        page.look_ahead()
        page.show()
        html = page.render(running=True, sentence="")
    assert page.forecast == "" and 'class="lead"' not in html
    assert progress.line() in html


def test_the_page_of_a_sweep_shows_its_jobs(tmp_path: Path) -> None:
    def rows() -> list[str]:
        html = page.read_text()
        assert all((page.parent / link).exists() for link in re.findall(r'href="([^"]+)"', html))
        return re.findall(r'"what it says">(.*?)<small>', html)

    page = note_sweep(tmp_path, "sweep-1", f"{COMMAND} -m", ended=False)
    assert rows() == []
    with live_page(tmp_path, "sweep-1", "job 1") as job:
        job.tell(nodes(tmp_path)["dpo"], "running")
        assert rows() == ["Running: DPO"]
    assert '<meta http-equiv="refresh"' in page.read_text()
    note_sweep(tmp_path, "sweep-1", f"{COMMAND} -m", ended=True)
    assert '<meta http-equiv="refresh"' not in page.read_text()
    assert page_faults(page, tmp_path) == []


@pytest.mark.slow
def test_a_killed_run_says_so_and_the_same_command_goes_on(tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    store = tmp_path / "outputs"
    command = [sys.executable, str(ROOT / "run.py"), "recipe=tiny", f"outputs={store}"]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while not (store / "report.html").exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    html = (store / "report.html").read_text()
    assert re.match(r"Running: \w|Starting", heading(store))
    [written] = re.findall(r'data-written="(\d+)"', html)
    later = tmp_path / "later.html"
    later.write_text(html.replace(written, str(int(written) - int(SILENT) - 1)))
    with browser(tmp_path / "browser") as tab:
        for page, is_hidden in ((later, False), (store / "report.html", True)):
            tab.open(page, 390)
            assert tab.evaluate("document.getElementById('silent').hidden") == is_hidden
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert '<meta http-equiv="refresh"' not in (store / "report.html").read_text()
