"""Why did it not help? Runs that are wrong on purpose, and what the report's block says of them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages import report
from stages.config.errors import UserError
from stages.evaluation.diagnosis import diagnose as causes
from stages.evaluation.diagnosis import effects
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import Evidence, gather_evidence
from stages.evaluation.diagnosis.finding import FAR, NUMBER, OUT, Finding, Normal, write_number
from stages.preflight import constraints
from stages.store.manifest import manifest_of
from stages.store.records import Pair, load
from tests.browser import page_faults
from tests.helpers import TINY, Chain, build, build_node, composed, nodes, settings
from tests.rows import work

# Settings that are not themselves out of range, with pairs enough to tell a coin from checks.
RIGHT = ("dpo.learning_rate=3e-4", "pairs=random", "pairs.max_per_prompt=4")


def evidence(chain: Chain, *overrides: str) -> Evidence:
    inputs = {
        role: chain.folder(role, *overrides)
        for role in nodes(chain.root, *overrides)["report"].inputs
    }
    manifests = {role: manifest_of(folder) for role, folder in inputs.items()}
    results = json.loads((inputs["eval"] / "results.json").read_text())
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


def test_a_value_is_normal_out_or_far_out_on_either_side() -> None:
    normal = Normal.times(1.0, 8.0, 2.0)
    severities = {0.5: FAR, 0.7: OUT, 1.0: 0, 8.0: 0, 9.0: OUT, 16.0: FAR}
    assert {value: normal.severity(value) for value in severities} == severities
    forms = {5.2e-5: "5.2e-5", 0.0025: "0.0025", -1894.6: "−1,895", 1e38: "1e38"}
    assert {number: write_number(NUMBER, number) for number in forms} == forms
    assert Normal(high=0.1).severity(0.9) == OUT, "no value of this is a cause by itself"


def test_an_sft_that_passes_less_by_chance_is_no_cause(chain: Chain) -> None:
    run = evidence(chain)

    def severity(mean: float) -> int:
        gain = {"mean": mean, "low": mean - 0.03, "high": mean + 0.03}
        finding = causes.sft_gain(
            replace(run, results=run.results | {"primary": {"sft-base": gain}})
        )
        assert finding
        return finding.severity

    assert [severity(mean) for mean in (0.1, -0.001, -0.04, -0.2)] == [0, 0, OUT, FAR]


def findings(run: Evidence) -> list[Finding]:
    """All of them, as if there were enough pairs, some held out, the policy had learnt them, and a verdict of all
    parts."""
    results = run.results | {"gives_verdict": ["checks", "learnt"]}
    lengths = run.lengths * causes.ENOUGH
    run = replace(
        run, dpo_metrics=run.dpo_metrics | {"held_out": 50}, results=results, lengths=lengths
    )
    run = replace(
        run, curve=[*run.curve, *[{"rewards/accuracies": effects.LEARNT}] * len(run.curve)]
    )
    measured = [measure(run) for measure in (*causes.CAUSES, *effects.EFFECTS, *effects.EVALUATION)]
    assert None not in measured
    return measured


ALONE, TOGETHER = (
    ("dpo.loss_type=[sigmoid]",),
    ("dpo.loss_type=[sigmoid,sft]", "dpo.loss_weights=[1.0,0.2]"),
)


@pytest.mark.extended
@pytest.mark.parametrize("mixture", [pytest.param(ALONE, marks=pytest.mark.slow), TOGETHER])
def test_a_key_that_is_told_to_be_tried_can_be_typed(
    mixture: tuple[str, ...], chain: Chain
) -> None:
    run = evidence(chain)
    run = replace(
        run, settings=run.settings | {"loss_type": settings(*TINY, *mixture).dpo.loss_type}
    )
    advice_texts = [cause.advice for f in findings(run) for cause in (f.below, f.above) if cause]
    key = re.compile(
        r"\b((?:data|sft|sample|label|pairs|dpo)\.(?!parquet)[a-z_.]+)(=(?:\[[a-z_,]+\]|[^\s;]*[^\s;,.]))?"
    )
    assert len({*key.findall(" ; ".join(advice_texts))}) > 15
    for advice in advice_texts:
        typed = key.findall(advice)
        constraints.validate_config(
            settings(*TINY, *mixture, *(name + value for name, value in typed if value))
        )
        for name in (name for name, value in typed if not value):
            assert OmegaConf.select(composed(*TINY), name, default=...) is not ..., name


def test_pairs_that_contradict_or_repeat_one_another_are_counted(chain: Chain) -> None:
    run = evidence(chain)
    turned = [replace(p, id=f"{p.id}-", chosen=p.rejected, rejected=p.chosen) for p in run.pairs]
    assert causes.contradictory(replace(run, pairs=run.pairs)).value == 0
    assert causes.contradictory(replace(run, pairs=[*run.pairs, *turned])).value == 1
    assert causes.repeated(run).value == 0
    assert causes.repeated(replace(run, pairs=[*run.pairs, *run.pairs])).value == 0.5


def test_labels_are_held_against_checks_where_there_are_some(chain: Chain) -> None:
    run = evidence(chain)
    agreement = causes.agreement(run)
    assert agreement is not None
    assert agreement.value == 1, "here the checks are the labeler"
    bare = {name: replace(e, checks=[]) for name, e in run.prompts.items()}
    assert causes.agreement(replace(run, prompts=bare)) is None


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
    assert "too few optimizer steps" in without
    assert "DPO helped. " in helped
    block = helped[helped.index('id="why"') :]
    assert block.index("<details>") < block.index("<table"), "folded"


@pytest.mark.extended
def test_a_diverged_run_says_so_first_and_can_be_read(chain: Chain, tmp_path: Path) -> None:
    """Two steps at a rate that tears the policy apart: too few losses to stop it by, and it still counts."""
    build(chain.root, "dpo.learning_rate=30", "dpo.batch_size=10")
    page = chain.root / "report.html"
    html = page.read_text()
    assert "learning rate is too high" in html
    assert html.index('id="why"') < html.index('id="kinds"')
    block = html.partition('id="why"')[2].partition("</section>")[0]
    numbers = re.findall(r'data-label="(?:measured|normal)">(?:<span[^>]*>)?([^<]*)', block)
    assert len(numbers) > 20
    assert not [number for number in numbers if re.search(r"(?i)\bnan\b|\binf\b|e[+]\d|^-", number)]
    assert page_faults(page, tmp_path / "browser") == []


def test_a_training_that_ends_in_no_number_has_no_report_and_names_the_key(chain: Chain) -> None:
    with pytest.raises(UserError, match=r"at step 2: .*dpo\.learning_rate"):
        build(chain.root, "dpo.learning_rate=1e30", "dpo.batch_size=10")
