"""`answer.samples`: draws beside the greedy answers, their pass@k and distinct texts, on the page and in `compare`."""

from itertools import combinations
from statistics import fmean

import pytest

from stages.evaluation.coverage import coverage_of, pass_at, tries
from stages.evaluation.outcomes import VIEWS
from stages.evaluation.results import read_results
from stages.store.records import Candidate, Example, load
from stages.tasks.checks import share_passed
from tests.helpers import Chain, build, nodes, refused

LINE = ("answer.samples=5", "answer.temperature=1.5", "control=false")


@pytest.mark.parametrize("passed", range(6))
def test_pass_at_k_is_the_share_of_choices_of_k_draws_with_one_that_passes(passed: int) -> None:
    draws = [i < passed for i in range(5)]
    for k in range(1, 6):
        assert pass_at(k, 5, passed) == pytest.approx(fmean(map(any, combinations(draws, k))))
    assert tries(5) == [1, 2, 4, 5]
    assert tries(8) == [1, 2, 4, 8]
    assert tries(1) == [1]


def test_draws_are_asked_for_by_one_key_and_change_nothing_else(chain: Chain) -> None:
    plain = nodes(chain.root)
    for name, node in plain.items():
        assert nodes(chain.root, "answer.samples=null")[name].fingerprint == node.fingerprint
    drawn = nodes(chain.root, "answer.samples=8")
    changed = {name for name, node in plain.items() if node.fingerprint != drawn[name].fingerprint}
    assert {"answer_policy", "answer_sft", "eval"} <= changed
    assert not changed & {"sft", "dpo", "pairs"}
    typed = nodes(chain.root, "answer.samples=8", "answer.temperature=1.0")
    assert typed["answer_policy"].fingerprint == drawn["answer_policy"].fingerprint
    assert refused("recipe=tiny", "answer.temperature=0.7").startswith("answer.temperature")
    assert refused("recipe=tiny", "answer.samples=0").startswith("answer.samples")


@pytest.mark.extended
def test_the_evaluation_counts_passes_and_distinct_texts_of_draws(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    build(chain.root, "stage=report", *LINE)
    answers = {role: chain.folder(f"answer_{role}", *LINE) for role in ("policy", "sft")}
    greedy = load(answers["policy"] / "answers.parquet", Candidate)
    assert {each.temperature for each in greedy} == {0.0}
    before = load(chain.folder("answer_policy") / "answers.parquet", Candidate)
    assert [each.text for each in greedy] == [each.text for each in before]

    results = read_results(chain.folder("eval", *LINE))
    coverage = coverage_of(results)
    assert coverage is not None and coverage.greedy is not None
    assert (coverage.draws, coverage.temperature) == (5, 1.5)
    assert [*coverage.passes] == ["1", "2", "4", "5"]
    assert coverage.greedy["policy"].mean == pytest.approx(results.primary["policy"].mean)
    assert "policy-sft" in coverage.passes["5"]

    examples = load(chain.folder("data") / "examples.parquet", Example)
    groups = VIEWS[str(results.endpoint)]
    checks = {example.id: example.checks for example in examples if example.group in groups}
    endpoint = coverage.distinct[str(results.endpoint)]
    for role, folder in answers.items():
        texts = dict[str, list[str]]()
        for each in load(folder / "samples.parquet", Candidate):
            assert each.temperature == 1.5
            texts.setdefault(each.prompt_id, []).append(each.answer)
        assert {len(each) for each in texts.values()} == {5}
        of_endpoint = {name: drawn for name, drawn in texts.items() if checks.get(name)}
        solved = list[bool]()
        for name, drawn in of_endpoint.items():
            solved.append(any(share_passed(checks[name], text) == 1 for text in drawn))
        assert coverage.passes["5"][role].mean == pytest.approx(fmean(solved))
        counts = [len({text.strip() for text in drawn}) for drawn in of_endpoint.values()]
        assert endpoint.by_role[role] == pytest.approx(fmean(counts))
    page = (chain.folder("report", *LINE) / "report.html").read_text()
    assert "pass@5" in page and "distinct answers" in page
    capsys.readouterr()
    build(chain.root, "stage=compare")
    assert "pass@5" in (chain.root / "compare.html").read_text()
