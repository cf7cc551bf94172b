"""`dpo.own` on the real trainer: a loss of the user's trains like TRL's of the same formula, and wrong ones never start."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.models import Own
from stages.config.choices import Forward
from stages.config.errors import UserError
from stages.store.sealed_json import load_json
from stages.training.own_loss import load_own_loss
from tests.helpers import TINY, Chain, inside, nodes, refused, settings
from tests.stages.test_dpo import block, distance, inputs, train

__all__ = ["inputs"]  # the fixture

HEAD = """
import torch
from torch.nn.functional import logsigmoid

def loss(pc, pr, rc, rr, chosen_mask, rejected_mask, beta=0.1):
    margin = (pc - rc).sum(-1) - (pr - rr).sum(-1)
"""
SIGMOID = HEAD + "    return -logsigmoid(beta * margin)\n"


def own(folder: Path, text: str, **options: Any) -> Own:
    """Return the user's code as the store copies it."""
    file = folder / hashlib.sha256(text.encode()).hexdigest() / "mine.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Own(file=str(file), name="loss", options=options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"forward": Forward.padded}, marks=pytest.mark.extended),
        pytest.param({"first_difference": True}, marks=pytest.mark.extended),
        pytest.param({"micro": 1}, marks=pytest.mark.extended),
    ],
)
def test_the_formula_of_dpo_as_an_own_loss_trains_the_same(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    plain = {name: value for name, value in changes.items() if name != "micro"}
    weights, metrics = train(block(**plain), inputs, tmp_path / "trl")
    cfg = block(own=own(tmp_path, SIGMOID, beta=0.1), **changes)
    own_weights, own_metrics = train(cfg, inputs, tmp_path / "own")
    assert distance(weights, own_weights) <= 1e-6
    for name in ("step_0_loss", "eval_loss", "rewards/margins", "logps/chosen", "tokens"):
        assert own_metrics[name] == pytest.approx(metrics[name], abs=1e-5), name
    first, second = (load_json(tmp_path / name / "held_out.json", list) for name in ("trl", "own"))
    for one, other in zip(first, second, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return -logsigmoid(margin).mean()", "shape []"),
        ("return -logsigmoid(margin)[:, None]", "shape [4, 1]"),
        ("return -logsigmoid(margin).squeeze()", "shape []"),
        ("return (-logsigmoid(margin)).tolist()", "shape [4]"),
        ("return margin.long()", "int64"),
        ("return -logsigmoid(margin.detach())", "no gradient"),
        ("return margin * 0", "gradient is 0"),
        ("return margin ** 2", "gradient is 0"),
        ("return margin.abs().sqrt()", "gradient is not finite"),
        ("return margin.log()", "inf"),
        ("return -logsigmoid(margin.sort().values)", "micro-batch"),
        ("return -logsigmoid(pc.mean(-1) - pr.mean(-1))", "padding"),
        ("return -logsigmoid(margin) + torch.rand(len(margin))", "micro-batch"),
        ("return 1 / 0", "line 7: ZeroDivisionError"),
        ("raise SystemExit(0)", "line 7: SystemExit"),
    ],
)
def test_a_loss_that_cannot_train_is_refused(body: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    with pytest.raises(UserError) as refusal:
        load_own_loss(own(tmp_path, f"{HEAD}    {body}\n"), "dpo.own", tmp_path / "node")
    message = str(refusal.value)
    assert message.startswith("dpo.own.name=loss in mine.py") and words in message


@pytest.mark.parametrize(
    "body",
    [
        "return torch.relu(1 - margin)",
        "return -logsigmoid(pc.sum(-1) / chosen_mask.sum(-1) - pr.sum(-1) / rejected_mask.sum(-1))",
    ],
)
def test_a_loss_may_be_flat_far_from_its_start_and_need_no_reference(
    body: str, tmp_path: Path
) -> None:
    (tmp_path / "node").mkdir()
    load_own_loss(own(tmp_path, f"{HEAD}    {body}\n"), "dpo.own", tmp_path / "node")


def typed(file: Path) -> str:
    return f"dpo.own={{file: {file}, name: loss}}"


def test_it_is_named_beside_no_other_loss_and_only_on_the_command_line(
    tmp_path: Path, chain: Chain
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(SIGMOID)
    line = ("recipe=tiny", typed(file))
    for other in ("dpo.loss_type=[ipo]", "dpo.loss_type=[sigmoid]", "dpo.loss_weights=[2]"):
        message = refused(*line, other)
        assert message.startswith(other.partition("=")[0]) and "dpo.own" in message
    for argument in ("label_smoothing=0.1", "use_weighting=true", "ld_alpha=0.5"):
        assert refused(*line, f"dpo.trainer.{argument}").startswith("dpo.trainer.")
    assert refused("recipe=tiny", f"dpo.own={{file: {file}, name: other}}").startswith("dpo.own")
    cfg = settings(*line).dpo
    assert (cfg.loss_type, cfg.loss_weights) == ([], None)
    assert "direct preference optimization" not in cfg.card
    plain = nodes(chain.root)["dpo"].fingerprint
    first = nodes(chain.root, typed(file))["dpo"].fingerprint
    file.write_text(SIGMOID + "\n")
    assert len({plain, first, nodes(chain.root, typed(file))["dpo"].fingerprint}) == 3


@pytest.mark.extended
def test_a_wrong_loss_stops_the_command_before_anything_is_built(
    tmp_path: Path, chain: Chain
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{HEAD}    return -logsigmoid(margin).mean()\n")
    ran = inside(*TINY, f"outputs={tmp_path / 'new'}", "stage=dpo", typed(file))
    assert ran.returncode == 1 and "dpo.own.name=loss in mine.py" in ran.stderr
    assert not (tmp_path / "new" / "base").exists()
