"""Tests of the report on a reward model that the run trained and that labelled its candidates."""

from pathlib import Path

import pytest

from tests.browser import page_faults
from tests.helpers import Chain, build

LABELS = (
    "label=reward_model",
    "reward.source.path=stages/tasks/toy_preferences.jsonl",
    "reward.max_length=256",
)
# The toy's pairs are few: more of them are held out.
LINE = (*LABELS, "pairs.validation_fraction=0.4")


@pytest.mark.extended
def test_its_figures_stand_in_a_section_of_their_own(chain: Chain, tmp_path: Path) -> None:
    build(chain.root, "stage=report", *LINE)
    html = (chain.root / "report.html").read_text()
    section = html.split('<section id="reward">')[1].split("</section>")[0]
    trained, label = (chain.manifest(name, *LINE)["metrics"] for name in ("reward", "label"))
    for share in (trained["accuracy"], trained["length_matched"]):
        assert f"{share['mean']:.1%}" in section
    for n, point in label["best_of"].items():
        row = section.split(f'<th scope="row">{n}</th>')[1].split("</tr>")[0]
        assert f"{point['checks']:.1%}" in row
    assert page_faults(chain.root / "report.html", tmp_path) == []
