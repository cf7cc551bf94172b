"""Tests of `label=own` with a reward function in the shape that TRL's GRPOTrainer takes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stages.config.errors import LimitReached, UserError
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.making import make_labeler
from stages.labelers.own import relative_question
from stages.store.records import Candidate, Example, Judgement, load
from tests.helpers import Chain, build, settings
from tests.rows import pool, work


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


LEVELS = "".join(
    json.dumps({"prompt": f"Describe {i}.", "completion": f"It is {i}.", "level": i / 4}) + "\n"
    for i in range(5)
)
LEVEL = """
def reward(prompts, completions, level, trainer_state, **columns):
    assert trainer_state.global_step == 0
    assert columns["task"] == columns["source"]
    return [float(each) for each in level]
"""


def test_it_takes_the_columns_of_the_prompts_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(LEVELS)
    of_file = ("sample=file", f"sample.file={file}", "sample.own_prompts=true")
    line = (*of_file, *own(tmp_path, LEVEL))
    root = tmp_path / "outputs"
    build(root, "stage=label", *line)
    [node] = [path.parent for path in (root / "label").glob("*/manifest.json")]
    texts = {c.candidate_id: c.text for c in load(node / "candidates.parquet", Candidate)}
    for j in load(node / "judgements.parquet", Judgement):
        place = int(texts[str(j.candidate_id)].split()[-1].rstrip("."))
        assert j.score == place / 4
    [pool] = [path.parent for path in (root / "sample").glob("*/manifest.json")]
    (pool / "columns.parquet").unlink()
    with pytest.raises(UserError, match=r"label\.own\.name=reward: .*'level'.*rebuild=sample"):
        build(root, "stage=label", *line[:3], *own(tmp_path, LEVEL + "# edited\n"))


def test_a_column_that_no_file_has_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(LEVELS)
    of_file = ("sample=file", f"sample.file={file}", "sample.own_prompts=true")
    text = "def reward(completions, depth):\n    return [1.0] * len(completions)\n"
    root = tmp_path / "outputs"
    with pytest.raises(UserError, match=r"label\.own\.name=reward: .*'depth'.* level"):
        build(root, "stage=label", *of_file, *own(tmp_path, text))
    assert not (root / "sample").exists()


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


def scores_of(tmp_path: Path, text: str, pool: Pool) -> tuple[Labeler, list[Judgement]]:
    """Return the labeler with the function in `text`, and its labels of a pool."""
    line = own(tmp_path, text)
    cfg = settings("recipe=tiny", *line).label
    copied = (
        tmp_path / hashlib.sha256(text.encode()).hexdigest() / "mine.py"
    )  # as the store copies it
    copied.parent.mkdir()
    copied.write_text(text)
    labeler = make_labeler(replace(cfg, own=replace(cfg.own, file=str(copied))), work(tmp_path))
    return labeler, [*labeler.judge_all(pool)]


SHIFTED = """
def reward(prompts, completions, **columns):
    shift = 100 * len(prompts[0][0]["content"])
    return [shift + len(completion[0]["content"]) for completion in completions]
"""


def test_relative_rewards_are_labels_within_their_prompts(tmp_path: Path) -> None:
    """A constant of a prompt changes no label; a function that says nothing is asked."""
    two = pool(["a", "bbb", "bbbbb"], ["a", "bbb", "bbbbb"])
    two.prompts[1].messages[0]["content"] += " In one line?"
    labeler, judgements = scores_of(tmp_path, SHIFTED + "reward.relative = True", two)
    assert labeler.relative and labeler.says_relative
    first, second = judgements[:3], judgements[3:]
    assert [j.score for j in first] == [j.score for j in second]
    assert [float(str(j.raw)) for j in first] != [float(str(j.raw)) for j in second]
    labeler, judgements = scores_of(tmp_path, SHIFTED, two)
    assert not labeler.relative and not labeler.says_relative
    assert judgements[2].score != judgements[5].score
    assert "reward.relative = " in relative_question("label.own", "reward", judgements)
    flags = [replace(j, score=float(i % 2)) for i, j in enumerate(judgements)]
    assert relative_question("label.own", "reward", flags) == ""
    with pytest.raises(UserError, match=r"label\.own\.name=reward: relative is 'yes'"):
        scores_of(tmp_path, SHIFTED + "reward.relative = 'yes'", two)
