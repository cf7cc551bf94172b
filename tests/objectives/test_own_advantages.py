"""`grpo.own`: the user's advantages train like ours by the same formula, and wrong ones never start."""

import hashlib
from pathlib import Path

import pytest

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.objectives import grpo as objective
from stages.training.own_advantages import load_own_advantages
from tests.helpers import Chain, nodes, refused
from tests.objectives.test_grpo import block, first_ids, inputs, trainer_of

__all__ = ["inputs"]  # the fixture

LEAVE_ONE_OUT = """
def mine(rewards, lengths):
    mean = sum(rewards) / len(rewards)
    assert all(isinstance(length, int) and length > 0 for length in lengths)
    return [(r - mean) * len(rewards) / (len(rewards) - 1) for r in rewards]
"""


def own(folder: Path, text: str) -> Own:
    """Return the user's code as the store copies it."""
    file = folder / hashlib.sha256(text.encode()).hexdigest() / "mine.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Own(file=str(file), name="mine")


def test_the_formula_of_leave_one_out_as_own_advantages_gives_the_same_rows(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    by_key = block(temperature=1.5, max_new_tokens=4, baseline="leave_one_out")
    by_code = block(temperature=1.5, max_new_tokens=4, own=own(tmp_path, LEAVE_ONE_OUT))
    rows = []
    for name, cfg in (("ours", by_key), ("own", by_code)):
        trainer = trainer_of(cfg, inputs, tmp_path / name)
        groups = trainer.rollouts.of_step([row["id"] for row in first_ids(trainer, 8)])
        live = objective.group_rows(groups, trainer.rollouts.token_ids, cfg, trainer.own_advantages)
        rows.append([each for row in live for each in row["completions"]])
    assert rows[0]
    for ours, theirs in zip(*rows, strict=True):
        assert ours.advantage == pytest.approx(theirs.advantage)
        assert (ours.token_ids, ours.share) == (theirs.token_ids, theirs.share)
    assert (tmp_path / "own" / "advantages" / "own.py").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return rewards[:-1]", "3 advantages"),
        ("return [r / 0.0 if r else float('nan') for r in rewards]", "ZeroDivisionError"),
        ("return [float('nan')] * len(rewards)", "nan"),
        ("return sum(rewards)", "returns 2.0"),
        ("return None", "returns None"),
        ("return ['good'] * len(rewards)", "good"),
        ("return [0.0] * len(rewards)", "are 0"),
        ("return [r / (max(rewards) - min(rewards)) for r in rewards]", "ZeroDivisionError"),
    ],
)
def test_advantages_that_cannot_train_are_refused(body: str, words: str, tmp_path: Path) -> None:
    code = own(tmp_path, f"def mine(rewards, lengths):\n    {body}\n")
    with pytest.raises(UserError) as refusal:
        load_own_advantages(code, "grpo.own", tmp_path / "node")
    message = str(refusal.value)
    assert message.startswith("grpo.own.name=mine in mine.py") and words in message


def test_they_are_in_the_fingerprint_and_take_the_place_of_the_baseline(
    tmp_path: Path, chain: Chain
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(LEAVE_ONE_OUT)
    typed = ("align=grpo", f"grpo.own={{file: {file}, name: mine}}")
    message = refused("recipe=tiny", *typed, "grpo.baseline=leave_one_out")
    assert message.startswith("grpo.baseline=leave_one_out") and "grpo.own" in message
    plain = nodes(chain.root, "align=grpo")["grpo"].fingerprint
    first = nodes(chain.root, *typed)["grpo"].fingerprint
    file.write_text(LEAVE_ONE_OUT + "\n")
    assert len({plain, first, nodes(chain.root, *typed)["grpo"].fingerprint}) == 3
