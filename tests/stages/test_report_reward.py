"""Tests of the report on a reward model that the run trained and that labelled its candidates."""

from pathlib import Path

import pytest

from stages.commands.plan import plan_nodes
from stages.pages.environment import environment
from stages.report import reward_figures
from stages.store.manifest import manifest_of
from stages.store.store import Store
from tests.browser import page_faults
from tests.helpers import Chain, build, nodes

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
        assert (
            f"{share['mean']:.1%}" in section
            and f"{share['low']:.1%} – {share['high']:.1%}" in section
        )
    assert f"{trained['calibration_error']:.3f}" in section and f"{trained['brier']:.3f}" in section
    for n, point in label["best_of"].items():
        row = section.split(f'<th scope="row">{n}</th>')[1].split("</tr>")[0]
        assert f"{point['score']:.3f}" in row and f"{point['checks']:.1%}" in row
    assert page_faults(chain.root / "report.html", tmp_path) == []


@pytest.mark.extended
def test_without_answers_to_match_in_length_the_section_has_a_line_less(chain: Chain) -> None:
    build(chain.root, "stage=reward", *LINE)
    trained = chain.manifest("reward", *LINE)["metrics"]
    section = environment().get_template("section_reward.html.jinja")
    lines = [
        section.render(
            reward={"trained": {k: v for k, v in trained.items() if k != left_out}}
        ).count('scope="row"')
        for left_out in (None, "length_matched")
    ]
    assert lines[0] == lines[1] + 1


def test_a_chain_without_one_has_no_section(chain: Chain) -> None:
    manifests = {name: manifest_of(chain.folder(name)) for name in nodes(chain.root)}
    assert reward_figures(manifests) == {}
    assert '<section id="reward">' not in (chain.folder("report") / "report.html").read_text()


@pytest.mark.extended
def test_the_plan_counts_the_memory_of_a_model_that_labels(chain: Chain) -> None:
    """It is the reward model's, whatever an earlier labelling of these candidates took."""

    def memory(*line: str) -> float:
        planned = plan_nodes(nodes(chain.root, *line), Store(chain.root)).nodes
        return next(node.memory for node in planned if node.name == "label")

    wide = ("model.random_init.hidden_size=2048", "model.random_init.vocab_size=20000")
    assert memory(*LINE, "label.runtime.token_budget=32768") > memory(*LINE)
    assert memory(*LINE, *wide) > memory("label=verifier", *wide) + 4 * 20000 * 2048
    other = f"label.path={chain.folder('sft') / 'model'}"
    assert memory("label=reward_model", other, *wide) < memory(*LINE, *wide), (
        "it is that model's own"
    )
