"""Why did it not help? Runs that are wrong on purpose, and what the report's block says of them."""

import json
from pathlib import Path

import pytest

from stages import report
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import Evidence, gather_evidence
from stages.evaluation.results import read_results
from stages.store.manifest import manifest_of
from stages.store.records import Pair, load
from tests.helpers import TINY, Chain, build_node, nodes, settings
from tests.rows import work

# Settings that are not themselves out of range, with pairs enough to tell a coin from checks.
RIGHT = ("dpo.learning_rate=3e-4", "pairs=random", "pairs.max_per_prompt=4")


def evidence(chain: Chain, *overrides: str) -> Evidence:
    inputs = {
        role: chain.folder(role, *overrides)
        for role in nodes(chain.root, *overrides)["report"].inputs
    }
    manifests = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = read_results(inputs["eval"])
    return gather_evidence(
        inputs, manifests, results, load(inputs["pairs"] / "pairs.parquet", Pair)
    )


def label_by(name: str) -> tuple[str, str]:
    file = Path(__file__).with_name("planted.py")
    return "label=own", f"label.own={{file: {file}, name: {name}}}"


COIN = "labels that agree with the prompts' checks"
UNFINISHED = (
    *label_by("Ended"),
    "sample.max_new_tokens=2",
    "pairs.unfinished=keep",
    "pairs.max_length_ratio=null",
)


def named(chain: Chain, *overrides: str) -> list[str]:
    """What the report names of a run with these keys, likeliest cause first."""
    build_node(chain.root, "eval", *RIGHT, *overrides)
    run = evidence(chain, *RIGHT, *overrides)
    return [finding.quantity for finding in diagnose(run, "DPO").out_of_range]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("cause", "overrides"),
    [
        (COIN, label_by("Coin")),
        pytest.param("learning rate", ("dpo.learning_rate=9e-3",), marks=pytest.mark.slow),
        pytest.param("learning rate", ("dpo.learning_rate=3e-6",), marks=pytest.mark.slow),
        pytest.param("chosen longer than rejected", label_by("Longer"), marks=pytest.mark.slow),
        pytest.param("rejected completions that were cut off", UNFINISHED, marks=pytest.mark.slow),
        pytest.param("beta", ("dpo.beta=5",), marks=pytest.mark.slow),
    ],
)
def test_the_planted_cause_of_six_runs_is_named_first(
    cause: str, overrides: tuple[str, ...], chain: Chain
) -> None:
    assert named(chain, *overrides)[0] == cause
    assert cause not in named(chain), "nor is it named where nothing was planted"


def reported(chain: Chain, folder: Path, low: float, high: float) -> str:
    """The report of a chain whose policy − SFT has this interval."""
    inputs = {role: chain.folder(role) for role in nodes(chain.root)["report"].inputs}
    path = inputs["eval"] / "results.json"
    results = json.loads(path.read_text())
    results["primary"]["policy-sft"] |= {"low": low, "high": high}
    path.write_text(json.dumps(results))
    report.run(settings(*TINY).report, inputs, work(folder))
    return (folder / "report.html").read_text()


@pytest.mark.extended
def test_it_stands_under_the_headline_unless_the_policy_helped(
    chain: Chain, tmp_path: Path
) -> None:
    without = reported(chain, tmp_path / "without", -0.1, 0.1)
    assert without.index('id="results"') < without.index('id="why"') < without.index('id="kinds"')
    helped = reported(chain, tmp_path / "helped", 0.05, 0.1)
    assert helped.index('id="why"') > helped.index('id="answers"')
    assert all(page.count('id="why"') == 1 for page in (without, helped))
    assert "DPO helped. " in helped
