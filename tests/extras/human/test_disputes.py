"""The questions of an ensemble for people, and the effect of their verdicts."""

import json
from typing import Any

import pytest

from stages.evaluation.reliability import own_vote
from stages.store.records import Candidate, Judgement, Pair, load
from tests.endpoints.servers import Model, running
from tests.extras.human.asking import somebody
from tests.helpers import Chain, build
from tests.labelers.judging import judging

pytest.importorskip("openai")


def labels(chain: Chain, *line: str) -> dict[tuple[str, str], Judgement]:
    judgements = load(chain.folder("label", *line) / "judgements.parquet", Judgement)
    return {(str(j.a), str(j.b)): j for j in judgements}


@pytest.mark.extended
def test_members_label_once_and_people_where_members_disagree(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Combine checks with a judge that prefers the alphabetically first text and a person who prefers the last."""
    by_letters = judging(lambda texts: "A" if texts["A"] < texts["B"] else "B")
    asked = list[frozenset[str]]()

    def backwards(question: dict[str, Any]) -> str:
        first, second = [answer["text"] for answer in question["answers"]]
        asked.append(frozenset([first, second]))
        return "b" if second > first else "a"

    with running(Model(by_letters)) as model:
        judge = f"label.judge.endpoints=[{{base_url: '{model.url}', model: m}}]"
        members = "label.members=[{labeler: verifier}, {labeler: judge, weight: 2}]"
        alone = ("label=ensemble", judge, members)
        with_people = (*alone, "label.human.runtime.port=0", "label.people=5", "label.audit=6")
        build(chain.root, "stage=label", *alone)
        calls = len(model.requests)
        assert calls
        with somebody(monkeypatch, backwards) as ports:
            build(chain.root, "stage=pairs", *with_people)
        build(chain.root, "stage=label", *with_people, "rebuild=label")
        build(chain.root, "stage=label", "label=judge", judge.replace("label.judge.", "label."))
        assert len(ports) == 1, "nobody gets a question twice"
        assert len(model.requests) == calls, "the judge's node is that of label=judge"

    before = labels(chain, *alone)
    after = labels(chain, *with_people)
    folder = chain.folder("label", *with_people)
    candidates = load(folder / "candidates.parquet", Candidate)
    texts = {c.candidate_id: c.text for c in candidates}
    rows = [json.loads(line) for line in (folder / "audit.jsonl").open()]
    audited = [tuple(row["judged"]) for row in rows]
    assert len(audited) == 6 and len(asked) == 6 + 5
    assert {*asked[:6]} == {frozenset([texts[a], texts[b]]) for a, b in audited}, (
        "the audit's questions come first"
    )
    assert all(after[of] == before[of] for of in audited), (
        "people's verdicts on the audit change no judgement"
    )
    changed = [of for of in after if after[of] != before[of]]
    assert changed
    for a, b in changed:
        word = "a" if texts[a] > texts[b] else "b"
        assert after[a, b].preference == word, "a person's verdict replaces the members'"
        assert own_vote(after[a, b]).preference == before[a, b].preference
    pairs = load(chain.folder("pairs", *with_people) / "pairs.parquet", Pair)
    assert pairs[0].labeler == "ensemble"
