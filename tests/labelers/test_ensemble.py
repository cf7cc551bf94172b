"""`label=ensemble`: what votes come to, whom a veto stops, what people are asked, and what their words change."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.labels import Voter
from stages.config.errors import UserError
from stages.labelers.ensemble import Ensemble, JointVote, joint_votes
from stages.store.records import Candidate, Judgement, Pair, load, save
from stages.store.workspace import StageDir
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build, nodes, refused, settings
from tests.labelers.asking import somebody
from tests.labelers.judging import judging
from tests.labelers.pools import pool

pytest.importorskip("openai")
pytest.importorskip("starlette")
SIGNS = {"a": 1, "tie": 0, "b": -1}


def scores(candidates: list[Candidate], *given: float | None) -> list[Judgement]:
    return [
        Judgement(c.prompt_id, "x", c.candidate_id, score=s, error="none" if s is None else None)
        for c, s in zip(candidates, given, strict=True)
    ]


def prefers(first: Candidate, second: Candidate, word: str | None) -> Judgement:
    of = {"a": first.candidate_id, "b": second.candidate_id}
    return Judgement(first.prompt_id, "x", **of, preference=word, error=None if word else "none")


def of_two(said: dict[str, list[Judgement]], *voters: Voter) -> JointVote:
    """What members come to on the two candidates of TWO, the first of them as `a`."""
    [found] = joint_votes(voters, said, TWO)
    if found.ids[0] == TWO[0].candidate_id:
        return found
    turned = {name: -vote for name, vote in found.votes.items()}
    word = {"a": "b", "b": "a"}.get(str(found.preference), found.preference)
    return JointVote(found.prompt_id, found.ids[::-1], turned, word, found.disagreement, found.vetoed)


TWO = pool(["one", "two"]).candidates


@pytest.mark.parametrize(
    ("votes", "weights", "expected", "disagreement"),
    [
        ("aa", (1, 1), "a", 0.0),
        ("ab", (1, 1), "tie", 1.0),
        ("ab", (1, 3), "b", 0.75),
        ("at", (1, 1), "a", 0.25),
        ("tt", (1, 1), "tie", 0.0),
        ("abb", (2, 1, 1), "tie", 1.0),
        ("ab?", (1, 2, 2), "b", 8 / 9),
        ("a??", (1, 1, 1), None, 0.0),
        ("ab", (0, 1), "b", 0.0),
    ],
)
def test_the_weighted_majority_decides_and_its_variance_is_the_doubt(
    votes: str, weights: tuple[float, ...], expected: str | None, disagreement: float
) -> None:
    words = {"a": "a", "b": "b", "t": "tie", "?": None}
    names = [f"m{i}" for i in range(len(votes))]
    voters = [Voter(name, weight) for name, weight in zip(names, weights, strict=True)]
    said = {name: [prefers(*TWO, words[vote])] for name, vote in zip(names, votes, strict=True)}
    for order in permutations(names):
        found = of_two({name: said[name] for name in order}, *voters)
        assert found.preference == expected
        assert found.disagreement == pytest.approx(disagreement)
    by_score = {"a": (0.9, 0.1), "b": (0.1, 0.9), "t": (0.4, 0.4), "?": (None, 0.5)}
    said |= {names[0]: scores(TWO, *by_score[votes[0]])}  # a score votes as a preference does
    assert of_two(said, *voters).preference == expected


@pytest.mark.parametrize(
    ("given", "expected", "vetoed"),
    [((1.0, 0.5), "a", True), ((0.5, 0.0), "tie", True), ((1.0, 1.0), "b", False), ((0.5, 1.0), "b", True)],
)
def test_what_is_vetoed_is_preferred_by_nobody(given: tuple[float, float], expected: str, vetoed: bool) -> None:
    said = {"checks": scores(TWO, *given), "judge": [prefers(*TWO, "b")]}
    found = of_two(said, Voter("checks", 0.0, veto=1.0), Voter("judge"))
    assert (found.preference, found.vetoed, found.disagreement) == (expected, vetoed, 0.0)
    unchecked = {"checks": scores(TWO, None, None), "judge": [prefers(*TWO, "b")]}
    assert not of_two(unchecked, Voter("checks", 0.0, veto=1.0), Voter("judge")).vetoed


def test_two_are_compared_if_every_member_that_compares_was_asked() -> None:
    four = pool(["one", "two", "three", "one"]).candidates
    scored = {"s": scores(four, 0.1, 0.2, 0.3, 0.4)}
    assert len([*joint_votes([Voter("s")], scored, four)]) == 6
    asked = {"j": [prefers(four[0], four[1], "b"), prefers(four[2], four[1], None)]}
    found = {frozenset(each.ids): each for each in joint_votes([Voter("s"), Voter("j")], scored | asked, four)}
    assert {*found} == {frozenset((four[i].candidate_id, four[1].candidate_id)) for i in (0, 2)}
    assert {len(each.votes) for each in found.values()} == {1, 2}
    same = frozenset((four[0].candidate_id, four[3].candidate_id))
    [equal] = [each for each in joint_votes([Voter("s")], scored, four) if frozenset(each.ids) == same]
    assert (equal.preference, equal.votes) == ("tie", {}), "equal texts are a tie, whatever scores say"


def told(chain: Chain, *line: str) -> tuple[dict[tuple[str, str], Judgement], dict[str, Any]]:
    judgements = load(chain.folder("label", *line) / "judgements.parquet", Judgement)
    return {(str(j.a), str(j.b)): j for j in judgements}, chain.manifest("label", *line)["metrics"]


def variance(judged: Judgement) -> float:
    """Of the two members' votes, which weigh 1 and 2; 0 of equal texts, which nobody votes on."""
    votes = json.loads(judged.raw or "")
    checks, judge = (SIGNS[votes.get(name, "tie")] for name in ("verifier", "judge"))
    return (checks**2 + 2 * judge**2) / 3 - ((checks + 2 * judge) / 3) ** 2


def test_members_label_once_and_people_where_these_disagree(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that goes by the alphabet, beside the checks; and a person who goes by it backwards."""
    by_letters = judging(lambda texts: "A" if texts["A"] < texts["B"] else "B")
    with running(Model(by_letters)) as model:
        judge = f"label.judge.endpoints=[{{base_url: '{model.url}', model: m}}]"
        members = "label.ensemble.members=[{labeler: verifier}, {labeler: judge, weight: 2}]"
        alone = ("label=ensemble", judge, members, "label.human.runtime.port=0")
        asked = (*alone, "label.ensemble.people=5", "label.audit=6")
        build(chain.root, "stage=label", *alone)
        calls = len(model.asked)
        assert calls
        shown = list[frozenset[str]]()

        def backwards(question: dict[str, Any]) -> str:
            texts = [answer["text"] for answer in question["answers"]]
            shown.append(frozenset(texts))
            return "ab"[texts[1] > texts[0]]

        with somebody(monkeypatch, backwards) as ports:
            build(chain.root, "stage=pairs", *asked)
        build(chain.root, "stage=label", *asked, "rebuild=label")
        build(chain.root, "stage=label", "label=judge", judge)
        assert len(ports) == 1, "nobody is asked again"
        assert len(model.asked) == calls, "the judge's node is that of label=judge"

    before, figures = told(chain, *alone)
    after, metrics = told(chain, *asked)
    texts = {c.candidate_id: c.text for c in load(chain.folder("label") / "candidates.parquet", Candidate)}
    audit = [json.loads(line)["judged"] for line in (chain.folder("label", *asked) / "audit.jsonl").open()]
    aside = [(a, b) for a, b in audit]
    assert len(aside) == 6 and all(after[of] == before[of] for of in aside), "they stay the labelers' own"
    changed = [of for of in after if after[of] != before[of]]
    for of in changed:
        preferred, other = of if after[of].preference == "a" else of[::-1]
        assert texts[preferred] > texts[other] and variance(before[of]) and of not in aside
        assert "ann" in json.loads(after[of].raw or "")["human"]
    people = metrics["ensemble"]["people"]
    by_text = {of: (after[of].prompt_id, frozenset(texts[name] for name in of)) for of in after}
    assert people["audited"] == 6 and people["asked"] == len({by_text[of] for of in changed}) == 5
    assert len(shown) == 6 + 5 and len({by_text[of] for of in aside}) == 6, "nobody is asked the same twice"
    assert {of for of in after if by_text[of] in {by_text[each] for each in changed}} == {*changed}, "copies included"
    assert people["changed"] == sum(after[of].preference != before[of].preference for of in changed)
    order = [*dict.fromkeys(shown)]
    first = {by_text[of][1] for of in aside}
    assert {*order[: len(first)]} == first, "the audit is asked first"
    rest = [of for of in before if of not in changed and by_text[of] not in {by_text[each] for each in aside}]
    assert min(map(variance, (before[of] for of in changed))) >= max(map(variance, (before[of] for of in rest)))
    assert max(map(variance, before.values())) > 0 and len({*map(variance, before.values())}) > 1

    reliability = json.loads((chain.folder("label", *asked) / "reliability.json").read_text())
    right = sum(texts[a if after[a, b].preference == "a" else b] == max(texts[a], texts[b]) for a, b in aside)
    assert reliability["known"] == 6 and reliability["accuracy"]["mean"] == pytest.approx(right / 6, abs=1e-4)
    assert metrics["failed"] == figures["failed"] == {}
    assert load(chain.folder("pairs", *asked) / "pairs.parquet", Pair)[0].labeler == "ensemble"


def test_a_member_is_the_node_of_its_labeler_alone(tmp_path: Path) -> None:
    judge = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9', model: m}]"
    reward = "reward.source.path=stages/tasks/toy_preferences.jsonl"
    members = "[{labeler: verifier, veto: 1.0}, {labeler: judge}, {labeler: reward_model, weight: 0.5}]"
    line = ("label=ensemble", judge, reward, f"label.ensemble.members={members}")
    found = nodes(tmp_path, *line)
    assert found["label"].inputs.keys() == {"pool", "verifier", "judge", "reward_model"}
    for name, keys in {"verifier": (), "judge": (judge,), "reward_model": (reward,)}.items():
        assert found[f"label_{name}"].fingerprint == nodes(tmp_path, f"label={name}", *keys)["label"].fingerprint
    other = nodes(tmp_path, *line, "label.judge.seed=1")
    assert other["label"].fingerprint != found["label"].fingerprint
    assert other["label_verifier"].fingerprint == found["label_verifier"].fingerprint
    assert nodes(tmp_path, *line, "rounds=2")["label_judge_1"].stage == "label"


JUDGE = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9', model: m}]"


@pytest.mark.parametrize(
    ("members", "more", "expected"),
    [
        ("null", (), "label=ensemble joins two labelers"),
        ("[{labeler: verifier}]", (), "label=ensemble joins two labelers"),
        ("[{labeler: verifier}, {labeler: verifyer}]", (), "label.ensemble.members[1].labeler=verifyer"),
        ("[{labeler: verifier}, {labeler: human}]", (), "label.ensemble.members[1].labeler=human is no member: label"),
        ("[{labeler: dataset}, {labeler: verifier}]", (), "label.ensemble.members[0].labeler=dataset is no member"),
        ("[{labeler: verifier}, {labeler: verifier}]", (), "label.ensemble.members[1].labeler=verifier stands there"),
        ("[{labeler: verifier}, {weight: 2}]", (), "label.ensemble.members[1].labeler is required"),
        ("[{labeler: verifier, weight: -1}, {labeler: judge}]", (), "label.ensemble.members[0].weight must be from 0"),
        ("[{labeler: verifier, veto: 2}, {labeler: judge}]", (), "label.ensemble.members[0].veto is a share"),
        ("[{labeler: verifier, weight: 0}, {labeler: judge, weight: 0}]", (JUDGE,), "label.ensemble.members: every"),
        ("[{labeler: verifier}, {labeler: judge, veto: 0.5}]", (JUDGE,), "label.ensemble.members[1].veto goes by"),
        ("[{labeler: verifier}, {labeler: judge}]", (), "label=judge needs judges"),
        ("[{labeler: verifier}, {labeler: reward_model}]", (), "label=reward_model needs a model"),
        (
            "[{labeler: verifier}, {labeler: reward_model}]",
            (JUDGE, "label.reward_model.path=README.md"),
            f"{JUDGE}: no judge labels",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "label.human.answers=3", "label.ensemble.people=5"),
            "label.human.answers=3: label=ensemble asks about",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "label.human.answered=README.md"),
            "label.human.answered: label.ensemble.people=200 asks people",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "sft.demonstrations=selected"),
            "sft.demonstrations=selected takes answers by",
        ),
    ],
)
def test_what_cannot_be_joined_is_told_before_anything_runs(
    members: str, more: tuple[str, ...], expected: str
) -> None:
    assert refused("recipe=tiny", "label=ensemble", f"label.ensemble.members={members}", *more).startswith(expected)


def test_a_veto_goes_by_scores_of_which_a_labeler_of_ones_own_may_give_none(tmp_path: Path) -> None:
    members = "[{labeler: verifier, veto: 1.0}, {labeler: own, veto: 0.5}]"
    label, inputs = settings("label=ensemble", f"label.ensemble.members={members}").label, dict[str, Path]()
    for name, said in {"verifier": scores(TWO, 1.0, 0.0), "own": [prefers(*TWO, "a")]}.items():
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        save(inputs[name] / "judgements.parquet", said, Judgement)
    with pytest.raises(UserError, match=r"members\[1\]\.veto .* own "):
        Ensemble(label, StageDir(tmp_path, lambda metrics, step: None)).pool(inputs)
