"""`label=ensemble`: joint votes, vetoes, the questions for people, and the effect of people's verdicts."""

import hashlib
import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.labels import Voter
from stages.config.errors import UserError
from stages.evaluation.reliability import own_vote
from stages.labelers.ensemble import Ensemble, JointVote, joint_votes
from stages.store.records import Candidate, Check, Judgement, Pair, load, save
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build, nodes, refused, settings
from tests.labelers.asking import somebody
from tests.labelers.judging import judging
from tests.rows import pool, work

pytest.importorskip("openai")
pytest.importorskip("starlette")
SIGNS = {"a": 1, "tie": 0, "b": -1}


def scores(candidates: list[Candidate], *values: float | None) -> list[Judgement]:
    return [
        Judgement(c.prompt_id, "x", c.candidate_id, score=s, error="none" if s is None else None)
        for c, s in zip(candidates, values, strict=True)
    ]


def prefers(first: Candidate, second: Candidate, word: str | None) -> Judgement:
    of = {"a": first.candidate_id, "b": second.candidate_id}
    return Judgement(first.prompt_id, "x", **of, preference=word, error=None if word else "none")


def of_two(by_labeler: dict[str, list[Judgement]], *voters: Voter) -> JointVote:
    """Return the members' joint vote on the two candidates of TWO, with the first of them as `a`."""
    [joint] = joint_votes(voters, by_labeler, TWO)
    if joint.ids[0] == TWO[0].candidate_id:
        return joint
    turned = {name: -vote for name, vote in joint.votes.items()}
    word = {"a": "b", "b": "a"}.get(str(joint.preference), joint.preference)
    return JointVote(
        joint.prompt_id, joint.ids[::-1], turned, word, joint.disagreement, joint.vetoed
    )


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
def test_the_weighted_majority_decides_and_its_variance_is_the_disagreement(
    votes: str, weights: tuple[float, ...], expected: str | None, disagreement: float
) -> None:
    words = {"a": "a", "b": "b", "t": "tie", "?": None}
    names = [f"m{i}" for i in range(len(votes))]
    voters = [Voter(name, weight) for name, weight in zip(names, weights, strict=True)]
    by_labeler = {
        name: [prefers(*TWO, words[vote])] for name, vote in zip(names, votes, strict=True)
    }
    for order in permutations(names):
        joint = of_two({name: by_labeler[name] for name in order}, *voters)
        assert joint.preference == expected
        assert joint.disagreement == pytest.approx(disagreement)
    by_score = {"a": (0.9, 0.1), "b": (0.1, 0.9), "t": (0.4, 0.4), "?": (None, 0.5)}
    # a member's scores vote like its preference
    by_labeler |= {names[0]: scores(TWO, *by_score[votes[0]])}
    assert of_two(by_labeler, *voters).preference == expected


@pytest.mark.parametrize(
    ("check_scores", "expected", "vetoed"),
    [
        ((1.0, 0.5), "a", True),
        ((0.5, 0.0), "tie", True),
        ((1.0, 1.0), "b", False),
        ((0.5, 1.0), "b", True),
    ],
)
def test_a_vetoed_candidate_is_never_preferred(
    check_scores: tuple[float, float], expected: str, vetoed: bool
) -> None:
    by_labeler = {"checks": scores(TWO, *check_scores), "judge": [prefers(*TWO, "b")]}
    joint = of_two(by_labeler, Voter("checks", 0.0, veto=1.0), Voter("judge"))
    assert (joint.preference, joint.vetoed, joint.disagreement) == (expected, vetoed, 0.0)
    unchecked = {"checks": scores(TWO, None, None), "judge": [prefers(*TWO, "b")]}
    assert not of_two(unchecked, Voter("checks", 0.0, veto=1.0), Voter("judge")).vetoed


def test_a_pair_is_used_if_every_member_with_preferences_compared_it() -> None:
    four = pool(["one", "two", "three", "one"]).candidates
    scored = {"s": scores(four, 0.1, 0.2, 0.3, 0.4)}
    assert len([*joint_votes([Voter("s")], scored, four)]) == 6
    compared = {"j": [prefers(four[0], four[1], "b"), prefers(four[2], four[1], None)]}
    joint_by_pair = {
        frozenset(each.ids): each
        for each in joint_votes([Voter("s"), Voter("j")], scored | compared, four)
    }
    assert {*joint_by_pair} == {
        frozenset((four[i].candidate_id, four[1].candidate_id)) for i in (0, 2)
    }
    assert {len(each.votes) for each in joint_by_pair.values()} == {1, 2}
    same = frozenset((four[0].candidate_id, four[3].candidate_id))
    [equal] = [
        each for each in joint_votes([Voter("s")], scored, four) if frozenset(each.ids) == same
    ]
    assert (equal.preference, equal.votes) == ("tie", {}), (
        "equal texts are a tie, whatever their scores"
    )


def labels_and_metrics(
    chain: Chain, *line: str
) -> tuple[dict[tuple[str, str], Judgement], dict[str, Any]]:
    judgements = load(chain.folder("label", *line) / "judgements.parquet", Judgement)
    return {(str(j.a), str(j.b)): j for j in judgements}, chain.manifest("label", *line)["metrics"]


def variance(judged: Judgement) -> float:
    """Return the variance of two members' votes with weights 1 and 2; 0 for equal texts without votes."""
    votes = json.loads(judged.raw or "")
    checks, judge = (SIGNS[votes.get(name, "tie")] for name in ("verifier", "judge"))
    return (checks**2 + 2 * judge**2) / 3 - ((checks + 2 * judge) / 3) ** 2


@pytest.mark.extended
def test_members_label_once_and_people_where_members_disagree(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Combine checks with a judge that prefers the alphabetically first text and a person who prefers the last."""
    by_letters = judging(lambda texts: "A" if texts["A"] < texts["B"] else "B")
    with running(Model(by_letters)) as model:
        judge = f"label.judge.endpoints=[{{base_url: '{model.url}', model: m}}]"
        members = "label.members=[{labeler: verifier}, {labeler: judge, weight: 2}]"
        alone = ("label=ensemble", judge, members)
        with_people = (*alone, "label.human.runtime.port=0", "label.people=5", "label.audit=6")
        build(chain.root, "stage=label", *alone)
        calls = len(model.requests)
        assert calls
        questions = list[frozenset[str]]()

        def backwards(question: dict[str, Any]) -> str:
            texts = [answer["text"] for answer in question["answers"]]
            questions.append(frozenset(texts))
            return "ab"[texts[1] > texts[0]]

        with somebody(monkeypatch, backwards) as ports:
            build(chain.root, "stage=pairs", *with_people)
        build(chain.root, "stage=label", *with_people, "rebuild=label")
        build(chain.root, "stage=label", "label=judge", judge.replace("label.judge.", "label."))
        assert len(ports) == 1, "nobody gets a question twice"
        assert len(model.requests) == calls, "the judge's node is that of label=judge"

    before, figures = labels_and_metrics(chain, *alone)
    after, metrics = labels_and_metrics(chain, *with_people)
    texts = {
        c.candidate_id: c.text
        for c in load(chain.folder("label") / "candidates.parquet", Candidate)
    }
    audit = [
        json.loads(line)["judged"]
        for line in (chain.folder("label", *with_people) / "audit.jsonl").open()
    ]
    audited = [(a, b) for a, b in audit]
    assert len(audited) == 6 and all(after[of] == before[of] for of in audited), (
        "people's verdicts on the audit change no judgement"
    )
    changed = [of for of in after if after[of] != before[of]]
    for of in changed:
        preferred, other = of if after[of].preference == "a" else of[::-1]
        assert texts[preferred] > texts[other] and variance(before[of]) and of not in audited
        assert "ann" in json.loads(after[of].raw or "")["human"]
    assert [own_vote(j).preference for j in after.values()] == [
        before[of].preference for of in after
    ]
    people = metrics["ensemble"]["people"]
    by_text = {of: (after[of].prompt_id, frozenset(texts[name] for name in of)) for of in after}
    assert people["audited"] == 6 and people["asked"] == len({by_text[of] for of in changed}) == 5
    assert len(questions) == 6 + 5 and len({by_text[of] for of in audited}) == 6, (
        "nobody gets the same question twice"
    )
    assert {of for of in after if by_text[of] in {by_text[each] for each in changed}} == {
        *changed
    }, "copies included"
    assert people["changed"] == sum(after[of].preference != before[of].preference for of in changed)
    order = [*dict.fromkeys(questions)]
    first = {by_text[of][1] for of in audited}
    assert {*order[: len(first)]} == first, "the audit's questions come first"
    rest = [
        of
        for of in before
        if of not in changed and by_text[of] not in {by_text[each] for each in audited}
    ]
    assert min(map(variance, (before[of] for of in changed))) >= max(
        map(variance, (before[of] for of in rest))
    )
    assert max(map(variance, before.values())) > 0 and len({*map(variance, before.values())}) > 1

    assert metrics["failed"] == figures["failed"] == {}
    assert (
        load(chain.folder("pairs", *with_people) / "pairs.parquet", Pair)[0].labeler == "ensemble"
    )


def test_a_member_is_the_same_node_as_its_labeler_alone(tmp_path: Path) -> None:
    judge = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9', model: m}]"
    reward = "reward.source.path=stages/tasks/toy_preferences.jsonl"
    members = (
        "[{labeler: verifier, veto: 1.0}, {labeler: judge}, {labeler: reward_model, weight: 0.5}]"
    )
    line = ("label=ensemble", judge, reward, f"label.members={members}")
    planned = nodes(tmp_path, *line)
    assert planned["label"].inputs.keys() == {"pool", "verifier", "judge", "reward_model"}
    alone = judge.replace("label.judge.", "label.")
    for name, keys in {"verifier": (), "judge": (alone,), "reward_model": (reward,)}.items():
        assert (
            planned[f"label_{name}"].fingerprint
            == nodes(tmp_path, f"label={name}", *keys)["label"].fingerprint
        )
    other = nodes(tmp_path, *line, "label.judge.seed=1")
    assert other["label"].fingerprint != planned["label"].fingerprint
    assert other["label_verifier"].fingerprint == planned["label_verifier"].fingerprint
    assert nodes(tmp_path, *line, "rounds=2")["label_judge_1"].stage == "label"


def test_members_without_a_block_have_the_limit_of_the_ensemble() -> None:
    members = "label.members=[{labeler: verifier}, {labeler: own}]"
    label = settings("label=ensemble", members, "label.max_failed=0.5").label
    assert [part.max_failed for part in label.parts] == [0.5, 0.5]


MEMBERS = "label.members"
JUDGE = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9', model: m}]"


@pytest.mark.parametrize(
    ("members", "more", "key", "way_out"),
    [
        ("[]", (), "label=ensemble", "label.members=["),
        ("[{labeler: verifier}]", (), "label=ensemble", "label.members=["),
        (
            "[{labeler: verifier}, {labeler: verifyer}]",
            (),
            "label.members[1].labeler=verifyer",
            "verifier",
        ),
        (
            "[{labeler: verifier}, {labeler: human}]",
            (),
            f"{MEMBERS}[1].labeler=human",
            "not a known value",
        ),
        (
            "[{labeler: dataset}, {labeler: verifier}]",
            (),
            f"{MEMBERS}[0].labeler=dataset",
            "not a known value",
        ),
        (
            "[{labeler: verifier}, {labeler: verifier}]",
            (),
            f"{MEMBERS}[1].labeler=verifier",
            "twice",
        ),
        ("[{labeler: verifier}, {weight: 2}]", (), f"{MEMBERS}[1].labeler is required", ""),
        (
            "[{labeler: verifier, weight: -1}, {labeler: judge}]",
            (),
            f"{MEMBERS}[0].weight",
            "from 0",
        ),
        (
            "[{labeler: verifier, veto: 2}, {labeler: judge}]",
            (),
            f"{MEMBERS}[0].veto",
            "from 0 to 1",
        ),
        (
            "[{labeler: verifier, weight: 0}, {labeler: judge, weight: 0}]",
            (JUDGE,),
            f"{MEMBERS}: every weight",
            "",
        ),
        (
            "[{labeler: verifier}, {labeler: reward_model, veto: 0.5}]",
            ("label.reward_model.path=reward", "align=grpo"),
            f"{MEMBERS}: ",
            "Take its veto away",
        ),
        (
            "[{labeler: verifier}, {labeler: judge, veto: 0.5}]",
            (JUDGE,),
            f"{MEMBERS}[1].veto",
            "label.judge.kind=pointwise",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (),
            "label.judge.endpoints",
            "label.judge.endpoints=[",
        ),
        (
            "[{labeler: verifier}, {labeler: reward_model}]",
            (),
            "label=reward_model",
            "label.reward_model.path=FOLDER",
        ),
        (
            "[{labeler: verifier}, {labeler: reward_model}]",
            (JUDGE, "label.reward_model.path=README.md"),
            "label.judge: it is no member",
            "label.members",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "label.human.answers=3", "label.people=5"),
            "label.human.answers is not a setting",
            "",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "label.human.answered=README.md"),
            "label.human:",
            "label.people=200",
        ),
        (
            "[{labeler: verifier}, {labeler: judge}]",
            (JUDGE, "sft.demonstrations=selected"),
            "sft.demonstrations=selected",
            "label.kind=pointwise",
        ),
    ],
)
def test_an_invalid_ensemble_is_refused_before_the_run(
    members: str, more: tuple[str, ...], key: str, way_out: str
) -> None:
    message = refused("recipe=tiny", "label=ensemble", f"label.members={members}", *more)
    assert message.startswith(key) and way_out in message[len(key) :]


def test_a_veto_needs_scores_also_from_a_user_defined_labeler(tmp_path: Path) -> None:
    members = "[{labeler: verifier, veto: 1.0}, {labeler: own, veto: 0.5}]"
    label, inputs = (
        settings("label=ensemble", f"label.members={members}").label,
        dict[str, Path](),
    )
    for name, judgements in {
        "verifier": scores(TWO, 1.0, 0.0),
        "own": [prefers(*TWO, "a")],
    }.items():
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        save(inputs[name] / "judgements.parquet", judgements, Judgement)
    with pytest.raises(UserError, match=r"^label\.members\[1\]\.veto=0\.5: .* own "):
        Ensemble(label, work(tmp_path)).pool(inputs)


def test_a_reward_is_the_members_mean_score(tmp_path: Path) -> None:
    """For GRPO: the verifier's reward of open requests and the user's own score, with a veto and a missing score."""
    code = (
        "from stages.labelers.labeler import Labeler\nfrom stages.store.records import Judgement\n\n\n"
        "class Brief(Labeler):\n    name = 'brief'\n\n    def judge(self, prompt, candidates):\n"
        "        for c in candidates:\n            score = None if c.text == 'lost' else 1 / len(c.text.split())\n"
        "            yield Judgement(prompt.id, self.name, c.candidate_id, score=score)\n"
    )
    own = tmp_path / hashlib.sha256(code.encode()).hexdigest() / "mine.py"  # as the store copies it
    own.parent.mkdir()
    own.write_text(code)
    members = "[{labeler: verifier, veto: 0.3}, {labeler: own, weight: 3}]"
    label = settings(
        "recipe=tiny",
        "label=ensemble",
        f"label.members={members}",
        f"label.own={{file: {own}, name: Brief}}",
    ).label
    completions = pool(["YES", "YES INDEED", "no", "lost"])
    checks = [
        Check("upper"),
        Check("word_count", {"count": 1}),
        Check("own_words", {"text": "Why are there tides?"}),
    ]
    prompts = [replace(prompt, checks=checks) for prompt in completions.prompts]
    ensemble = Ensemble(label, work(tmp_path))
    judgements = [*ensemble.judge_rollouts(completions._replace(prompts=prompts))]
    assert [j.candidate_id for j in judgements] == [c.candidate_id for c in completions.candidates]
    assert [j.score for j in judgements[:3]] == pytest.approx(
        [1.0, (1 / 3 + 3 * 0.5) / 4, (1 / 3 + 3 * 1.0) / 4]
    )
    assert judgements[3].score is None and "own" in str(judgements[3].error)
    strict = replace(label, members=[Voter("verifier", 1.0, 0.6), Voter("own", 3.0)])
    vetoed = [*Ensemble(strict, ensemble.out).judge_rollouts(completions._replace(prompts=prompts))]
    assert [j.score for j in vetoed[:3]] == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize("constant", [-20.0, -6.0, 20.0])
def test_a_vetoed_completion_is_last_whatever_the_constant_of_relative_scores(
    constant: float, tmp_path: Path
) -> None:
    code = (
        "from stages.labelers.labeler import Labeler\nfrom stages.store.records import Judgement\n\n\n"
        "class Liking(Labeler):\n    name, relative = 'liking', True\n\n"
        "    def __init__(self, constant):\n        self.constant = constant\n\n"
        "    def judge(self, prompt, candidates):\n        for c in candidates:\n"
        "            score = self.constant + len(c.text)\n"
        "            yield Judgement(prompt.id, self.name, c.candidate_id, score=score)\n"
    )
    own = tmp_path / hashlib.sha256(code.encode()).hexdigest() / "mine.py"
    own.parent.mkdir()
    own.write_text(code)

    def rewards_with(constant: float) -> list[float]:
        label = settings(
            "recipe=tiny",
            "label=ensemble",
            "label.members=[{labeler: verifier, veto: 0.6}, {labeler: own}]",
            f"label.own={{file: {own}, name: Liking, options: {{constant: {constant}}}}}",
        ).label
        prompts = [replace(p, checks=[Check("upper")]) for p in completions.prompts]
        ensemble = Ensemble(label, work(tmp_path))
        assert ensemble.relative
        return [
            float(j.score or 0.0)
            for j in ensemble.judge_rollouts(completions._replace(prompts=prompts))
        ]

    completions = pool(["A", "ABC", "a longer answer, which is not in capitals"])
    plain, moved = rewards_with(0.0), rewards_with(constant)
    assert plain[2] == min(plain) < plain[0] < plain[1]
    differences = [reward - moved[0] for reward in moved]
    assert differences == pytest.approx([reward - plain[0] for reward in plain])
