"""Tests of the time left on the page of a run."""

from pathlib import Path

from stages.extras.forecast.forecast import RunForecast
from stages.pages.live import LivePage
from stages.store.store import Store
from stages.store.workspace import Progress
from tests.helpers import Chain, nodes


def test_the_time_left_is_that_of_the_whole_run_or_names_what_is_not_counted(
    chain: Chain, tmp_path: Path
) -> None:
    """Every node but SFT was measured here; in another store none was."""
    for root, is_known in ((chain.root, True), (tmp_path / "new", False)):
        planned = nodes(root)
        forecast = RunForecast(planned, Store(root))
        page = LivePage(
            Store(root), planned, [planned["report"]], "", "recipe: tiny", forecast.seconds_left
        )
        with page, Progress(100, "sft", "step") as progress:
            progress.done = 50
            page.tell(planned["sft"], "running")
            page.look_ahead()
            page.show()
        left = page.forecast
        assert left.startswith("The whole run: ")
        assert ("DPO, Answers" in left) is not is_known
        html = page.render(running=True, sentence="")
        assert f'<p class="lead">{left}</p>' in html
