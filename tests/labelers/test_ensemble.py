"""`label=ensemble`: joint votes, vetoes, the questions for people, and the effect of people's verdicts."""

import hashlib
import json
import math
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from stages.config.blocks.labels import Verifier, Voter
from stages.labelers.ensemble import EnsembleLabeler, JointVote, joint_votes
from stages.labelers.labeler import Pool
from stages.objectives.grpo import compute_advantages
from stages.store.records import Candidate, Check, Judgement, Pair, load
from tests.helpers import Chain, build, needing, nodes, refused, settings
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


GATE = "label.combine=gate"


@pytest.mark.parametrize(
    ("members", "more", "key"),
    [
        (f"{CHECKS}, {{labeler: own}}", (BRIEF,), "label.combine=gate"),
        ("{labeler: verifier, veto: 1}, {labeler: own, veto: 0.5}", (BRIEF,), "label.combine=gate"),
        (
            "{labeler: verifier, veto: 1}, {labeler: judge}",
            (JUDGE,),
            "label.members[1].labeler=judge",
        ),
        (
            "{labeler: verifier, veto: 1}, {labeler: own, weight: 0}",
            (BRIEF,),
            "label.members",
        ),
        needing(
            "human",
            "{labeler: verifier, veto: 1}, {labeler: own}",
            (BRIEF, "label.people=5"),
            "label.people=5",
        ),
    ],
)
def test_gates_without_a_quality_and_votes_behind_gates_are_refused(
    members: str, more: tuple[str, ...], key: str
) -> None:
    line = ("recipe=tiny", "label=ensemble", f"label.members=[{members}]", GATE, *more)
    assert refused(*line).startswith(key)


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


QUALITY = """
QUALITIES = {"A": 0.1, "B": 0.4, "C": 0.7, "D": 0.3, "E": 0.35, "bad": 0.9, "F": 0.2, "LOST": None}
asked = []

def quality(completions, prompts, factor, shift):
    texts = [completion[0]["content"] for completion in completions]
    asked.append(texts)
    place = {"request 0": 1, "request 1": -1}.get(prompts[0][0]["content"], 0)
    rewards = []
    for text in texts:
        value = QUALITIES[text]
        rewards.append(None if value is None else factor * value + place * shift)
    return rewards
"""
GATED = "[{labeler: verifier, veto: 1.0}, {labeler: own}]"
DRAWS = (["A", "B", "bad", "C"], ["D", "E", "LOST"], ["bad", "F"], ["bad", "bad"])


def gated(
    folder: Path, factor: float = 1.0, shift: float = 0.0, pools: Any = None
) -> list[Judgement]:
    """Return the gated scores of DRAWS, in the order of their texts. The check: upper case."""
    own = folder / hashlib.sha256(QUALITY.encode()).hexdigest() / "quality.py"
    own.parent.mkdir(exist_ok=True)
    own.write_text(QUALITY)
    options = f"options: {{factor: {factor}, shift: {shift}}}"
    line = (f"label.members={GATED}", f"label.own={{file: {own}, name: quality, {options}}}")
    cfg = settings("recipe=tiny", "label=ensemble", GATE, *line).label
    judgements = list[Judgement]()
    for completions in pools or [pool(*DRAWS)]:
        for each in completions.prompts:
            each.checks = [Check("upper")]
        labeler = EnsembleLabeler(cfg, work(folder))
        assert not labeler.relative, "the score 0 fails, and every other passes"
        judgements += labeler.judge_rollouts(completions)
    return judgements


def ranks(judgements: list[Judgement]) -> list[float]:
    """Return z of each score between 1 and 2."""
    shares = [(j.score or 0) - 1 for j in judgements if j.score]
    return [math.log(share / (1 - share)) for share in shares]


def test_a_gate_decides_and_quality_ranks_what_passes(tmp_path: Path) -> None:
    judgements = gated(tmp_path)
    scored = [j.score for j in judgements]
    assert scored[2] == scored[7] == scored[9] == scored[10] == 0, "whatever the quality"
    assert scored[6] is None and judgements[6].error == "own: the reward is None"
    assert scored[8] == 1.5, "a prompt with one passing draw compares nothing"
    # by hand: qualities 0.1, 0.4, 0.7 and 0.3, 0.35, and one alone; three degrees of freedom
    deviation = ((0.3**2 + 0.3**2 + 2 * 0.025**2) / 3) ** 0.5
    gaps = [-0.3, 0, 0.3, -0.025, 0.025, 0]
    assert ranks(judgements) == pytest.approx([gap / deviation for gap in gaps])


@pytest.mark.parametrize(
    ("factor", "shift"), [(1, 10), (1, -10), (3, 0), (3, 10), (1e-9, 0), (1e9, 0), (1e-200, 0)]
)
def test_neither_the_scale_of_the_quality_nor_a_constant_of_a_prompt_moves_a_rank(
    factor: float, shift: float, tmp_path: Path
) -> None:
    plain = gated(tmp_path)
    moved = gated(tmp_path, factor, shift)
    assert ranks(moved) == pytest.approx(ranks(plain), abs=1e-6)
    cfg = settings("recipe=tiny", "align=grpo").grpo
    rewards = [[j.score or 0.0 for j in judgements[:4]] for judgements in (plain, moved)]
    before, after = [compute_advantages(each, cfg) for each in rewards]
    assert after == pytest.approx(before, abs=1e-3)


def test_equal_qualities_score_alike_however_large_they_are(tmp_path: Path) -> None:
    draws = [["A", "A", "A", "bad"], ["C"] * 7, ["bad"]]
    scored = [j.score for j in gated(tmp_path, 1, 1 / 3, [pool(*draws)])]
    assert scored == [1.5, 1.5, 1.5, 0, *[1.5] * 7, 0]


def test_processes_that_score_at_once_share_the_deviation(tmp_path: Path) -> None:
    """Two processes, each with half of a step's prompts: every one contributes its part to the deviation."""
    together = gated(tmp_path)
    halves = [pool(*DRAWS)._replace(prompts=[], candidates=[]) for _ in range(2)]
    whole = pool(*DRAWS)
    for i in range(2):
        prompts = whole.prompts[i::2]
        ids = {each.id for each in prompts}
        drawn = [c for c in whole.candidates if c.prompt_id in ids]
        halves[i] = halves[i]._replace(prompts=prompts, candidates=drawn)
    barrier = threading.Barrier(2)
    parts = list[Any]()

    def gather(part: list[Any]) -> list[Any]:
        parts.extend(part)
        barrier.wait(30)
        return parts

    def score(name: str, half: Pool) -> list[Judgement]:
        folder = tmp_path / name
        folder.mkdir()
        return gated(folder, pools=[half._replace(gather=gather)])

    with ThreadPoolExecutor(2) as executor:
        judged_halves = [*executor.map(score, ("one", "two"), halves)]
    by_id = {j.candidate_id: j.score for half in judged_halves for j in half}
    assert by_id == pytest.approx({j.candidate_id: j.score for j in together}, abs=1e-9)


LETTERS = """
def letters(completions):
    return [sum(map(ord, completion[0]["content"])) % 101 / 100 for completion in completions]
"""


@pytest.mark.extended
def test_gated_scores_label_candidates_for_pairs(chain: Chain, tmp_path: Path) -> None:
    """As a label the score is half of the reward's, and z is by all prompts of the pool."""
    file = tmp_path / "letters.py"
    file.write_text(LETTERS)
    own = f"label.own={{file: {file}, name: letters}}"
    # the tiny model's answers seldom pass all checks
    line = ("label=ensemble", GATE, f"label.members={GATED.replace('1.0', '0.01')}", own)
    build(chain.root, "stage=pairs", *line)
    folder = chain.folder("label", *line)
    judgements = load(folder / "judgements.parquet", Judgement)
    raw = {str(j.candidate_id): json.loads(j.raw or "{}") for j in judgements}
    by_prompt = defaultdict[str, list[float]](list)
    for j in judgements:
        members = raw[str(j.candidate_id)]
        assert j.error is None and j.score is not None
        assert (j.score == 0) == (members["verifier"] < 0.01)
        if j.score:
            by_prompt[j.prompt_id].append(members["own"])
    gaps = [own - fmean(group) for group in by_prompt.values() for own in group]
    freedom = sum(len(group) - 1 for group in by_prompt.values())
    deviation = math.hypot(*gaps) / freedom**0.5
    for j in judgements:
        if j.score:
            z = (raw[str(j.candidate_id)]["own"] - fmean(by_prompt[j.prompt_id])) / deviation
            assert j.score == pytest.approx((1 + 1 / (1 + math.exp(-z))) / 2)
    pairs = load(chain.folder("pairs", *line) / "pairs.parquet", Pair)
    scores_by_id = {j.candidate_id: j.score for j in judgements}
    assert pairs and all(
        scores_by_id[pair.chosen_id] > scores_by_id[pair.rejected_id] for pair in pairs
    )
