"""`label=ensemble`: joint votes, vetoes, the questions for people, and the effect of people's verdicts."""

import hashlib
from pathlib import Path

import pytest

from stages.config.blocks.labels import Verifier, Voter
from stages.labelers.ensemble import EnsembleLabeler, JointVote, joint_votes
from stages.store.records import Candidate, Check, Judgement
from tests.helpers import nodes, refused, settings
from tests.rows import pool, work

pytest.importorskip("openai")
pytest.importorskip("starlette")
JUDGE = "label.judge.endpoints=[{base_url: 'http://127.0.0.1:9', model: m}]"
CHECKS = "{labeler: verifier}"
CHECKS_AND_JUDGE = "{labeler: verifier}, {labeler: judge}"
OWN_AND_JUDGE = "{labeler: own}, {labeler: judge}"
BRIEF = "label.own={file: docs/examples/brief.py, name: Brief}"


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
        ("ab?", (1, 2, 2), "b", 8 / 9),
        ("a??", (1, 1, 1), None, 0.0),
    ],
)
def test_the_weighted_majority_decides_and_its_variance_is_the_disagreement(
    votes: str, weights: tuple[float, ...], expected: str | None, disagreement: float
) -> None:
    words = {"a": "a", "b": "b", "t": "tie", "?": None}
    voters = [Voter(f"m{i}", weight) for i, weight in enumerate(weights)]
    by_labeler = {f"m{i}": [prefers(*TWO, words[vote])] for i, vote in enumerate(votes)}
    joint = of_two(by_labeler, *voters)
    assert joint.preference == expected
    assert joint.disagreement == pytest.approx(disagreement)
    # a member's scores vote like its preference
    by_score = {"a": (0.9, 0.1), "b": (0.1, 0.9), "t": (0.4, 0.4), "?": (None, 0.5)}
    by_labeler["m0"] = scores(TWO, *by_score[votes[0]])
    assert of_two(by_labeler, *voters).preference == expected


@pytest.mark.parametrize(
    ("check_scores", "expected", "vetoed"),
    [
        ((1.0, 0.5), "a", True),
        ((0.5, 0.0), "tie", True),
        ((1.0, 1.0), "b", False),
        ((None, None), "b", False),
    ],
)
def test_a_vetoed_candidate_is_never_preferred(
    check_scores: tuple[float | None, float | None], expected: str, vetoed: bool
) -> None:
    by_labeler = {"checks": scores(TWO, *check_scores), "judge": [prefers(*TWO, "b")]}
    joint = of_two(by_labeler, Voter("checks", 0.0, veto=1.0), Voter("judge"))
    assert joint.preference == expected
    assert joint.vetoed == vetoed


@pytest.mark.parametrize(
    ("members", "more", "key"),
    [
        (f"{CHECKS}, {{labeler: verifyer}}", (), "label.members[1].labeler=verifyer"),
        (f"{CHECKS}, {{labeler: judge, weight: -1}}", (), "label.members[1].weight"),
        (f"{CHECKS}, {{labeler: judge, veto: 0.5}}", (JUDGE,), "label.members[1].veto"),
        (CHECKS_AND_JUDGE, (), "label.judge.endpoints"),
        (CHECKS_AND_JUDGE, (JUDGE, "label.reward_model.path=README.md"), "label.reward_model"),
        (
            OWN_AND_JUDGE,
            (JUDGE, BRIEF, "sft.demonstrations=selected"),
            "sft.demonstrations=selected",
        ),
    ],
)
def test_an_invalid_ensemble_is_refused_before_the_run(
    members: str, more: tuple[str, ...], key: str
) -> None:
    line = ("recipe=tiny", "label=ensemble", f"label.members=[{members}]", *more)
    assert refused(*line).startswith(key)


def test_the_verifier_of_an_ensemble_selects_demonstrations_alone(tmp_path: Path) -> None:
    line = ("label=ensemble", f"label.members=[{CHECKS_AND_JUDGE}]", JUDGE)
    graph = nodes(tmp_path, "sft.demonstrations=selected", *line)
    labels = graph["label_base"]
    assert isinstance(labels.config, Verifier)
    assert labels in graph["select"].lineage
    assert graph["label"].config.names == ["verifier", "judge"], "the pairs are those of the votes"


OWN = """
from stages.labelers.labeler import Labeler
from stages.store.records import Judgement

class Brief(Labeler):
    name = "brief"

    def judge(self, prompt, candidates):
        for c in candidates:
            score = None if c.text == "lost" else 1 / len(c.text.split())
            yield Judgement(prompt.id, self.name, c.candidate_id, score=score)
"""


@pytest.mark.parametrize(
    ("veto", "expected"),
    [(0.3, [1.0, (1 / 3 + 3 * 0.5) / 4, (1 / 3 + 3 * 1.0) / 4]), (0.6, [1.0, 0.0, 0.0])],
)
def test_a_reward_is_the_members_mean_score(
    veto: float, expected: list[float], tmp_path: Path
) -> None:
    """For GRPO: the verifier's reward of open requests and the user's own score, with a veto and a missing score."""
    own = tmp_path / hashlib.sha256(OWN.encode()).hexdigest() / "mine.py"  # as the store copies it
    own.parent.mkdir()
    own.write_text(OWN)
    members = f"[{{labeler: verifier, veto: {veto}}}, {{labeler: own, weight: 3}}]"
    line = (f"label.members={members}", f"label.own={{file: {own}, name: Brief}}")
    completions = pool(["YES", "YES INDEED", "no", "lost"])
    completions.prompts[0].checks = [
        Check("upper"),
        Check("word_count", {"count": 1}),
        Check("own_words", {"text": "Why are there tides?"}),
    ]
    cfg = settings("recipe=tiny", "label=ensemble", *line).label
    judgements = [*EnsembleLabeler(cfg, work(tmp_path)).judge_rollouts(completions)]
    assert [j.score for j in judgements[:3]] == pytest.approx(expected)
    assert judgements[3].score is None
