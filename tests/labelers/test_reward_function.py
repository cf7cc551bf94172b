"""Tests of `label=own` with a reward function in the shape that TRL's GRPOTrainer takes."""

import json
from pathlib import Path

import pytest

from stages.config.errors import LimitReached, UserError
from stages.store.records import Candidate, Example, Judgement, load
from tests.helpers import Chain, build


def own(folder: Path, text: str, **options: object) -> tuple[str, str]:
    """Return the settings for a file with the function `reward`."""
    (folder / "mine.py").write_text(text)
    written = ", ".join(f"{key}: {value}" for key, value in options.items())
    return (
        "label=own",
        f"label.own={{file: {folder / 'mine.py'}, name: reward, options: {{{written}}}}}",
    )


LENGTHS = """
def reward(prompts, completions, answer, task, most=1000, **columns):
    assert len({len(prompts), len(completions), len(answer), len(task), len(columns["checks"])}) == 1
    assert {turn["role"] for turn in prompts[0]} <= {"system", "user"}
    return [len(completion[0]["content"]) / most for completion in completions]
"""


@pytest.mark.extended
def test_it_is_asked_about_no_further_prompt_when_the_time_is_up(
    chain: Chain, tmp_path: Path
) -> None:
    call_log = tmp_path / "calls"
    text = f"def reward(completions):\n    open({str(call_log)!r}, 'a').write('.')\n    return [0.5] * len(completions)"
    line = own(tmp_path, text)
    with pytest.raises(LimitReached, match=r"^limits\.minutes=1e-05: reached in label reward "):
        build(chain.root, "stage=label", *line, "limits.minutes=1e-5")
    tried = 2  # on made-up prompts, before anything is built
    assert call_log.read_text() == "." * (tried + 1)
    texts, judgements = labels(chain, line)
    assert len(judgements) == len(texts)


def test_it_scores_every_candidate_with_the_rows_columns(chain: Chain, tmp_path: Path) -> None:
    texts, judgements = labels(chain, own(tmp_path, LENGTHS, most=500))
    assert {j.candidate_id for j in judgements} == texts.keys()
    for j in judgements:
        assert (j.labeler, j.score) == ("reward", len(texts[str(j.candidate_id)]) / 500)


@pytest.mark.parametrize(
    "text",
    [
        "async def reward(completions):\n    return [-len(c[0]['content']) for c in completions]",
        "import torch\ndef reward(completions):\n"
        "    return torch.tensor([-len(c[0]['content']) for c in completions])",
    ],
)
def test_rewards_of_any_size_are_scaled_and_kept(text: str, chain: Chain, tmp_path: Path) -> None:
    texts, judgements = labels(chain, own(tmp_path, text))
    lengths = {name: len(text) for name, text in texts.items()}
    longest = max(lengths.values())
    shortest = min(lengths.values())
    for j in judgements:
        length = lengths[str(j.candidate_id)]
        assert float(str(j.raw)) == -length
        assert j.score == pytest.approx((longest - length) / (longest - shortest))


def labels(chain: Chain, line: tuple[str, str]) -> tuple[dict[str, str], list[Judgement]]:
    """Build the labels; return the candidates' texts and the judgements."""
    build(chain.root, "stage=label", *line)
    node = chain.folder("label", *line)
    candidates = load(node / "candidates.parquet", Candidate)
    judgements = load(node / "judgements.parquet", Judgement)
    return {c.candidate_id: c.text for c in candidates}, judgements


def failing_at(prompt: str, action: str) -> str:
    """Return a function whose second line is `action` for one prompt; other candidates get 1."""
    return (
        f"def reward(prompts, completions):\n"
        f"    if prompts[0][-1]['content'] == {json.dumps(prompt)}: {action}\n"
        f"    return [1.0 for _ in completions]\n"
    )


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("raise KeyError('x')", "line 2: KeyError: 'x'"),
        ("return [float('nan')] * len(completions)", "the reward is nan"),
    ],
)
def test_a_row_without_a_reward_is_missing_and_named(
    action: str, reason: str, chain: Chain, tmp_path: Path
) -> None:
    prompt = load(chain.folder("sample") / "prompts.parquet", Example)[3]
    line = own(tmp_path, failing_at(prompt.messages[-1]["content"], action))
    _, judgements = labels(chain, line)
    errors = {j.prompt_id: j.error for j in judgements if j.error}
    assert errors == {prompt.id: reason}
    [warning] = chain.manifest("label", *line)["warnings"]
    assert reason in warning and prompt.opening in warning


@pytest.mark.parametrize("stage", [("stage=label",), ("stage=grpo", "align=grpo")])
def test_a_list_of_the_wrong_length_stops_with_the_row(
    stage: tuple[str, ...], chain: Chain, tmp_path: Path
) -> None:
    text = "def reward(prompts, completions):\n    made_up = prompts[0][-1]['content'].startswith('What is ')\n"
    text += "    return [1.0] * (len(completions) if made_up else 9)\n"
    with pytest.raises(UserError, match=r'^label\.own: .*prompt ".+"'):
        build(chain.root, *stage, *own(tmp_path, text))
