"""Tests of arithmetic: no TF32, a fused optimizer, and no kernels that silently replace layers."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

import stages.training.fit
import stages.training.trainer
from stages import dpo, sft
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.config.trainers import validate_trainer
from stages.models.loading import load_model
from stages.models.scoring import autocast, install_scoring
from stages.store.workspace import StageDir
from stages.training.arguments import training_arguments
from tests.helpers import Chain, settings

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


class Products(TorchDispatchMode):
    """Record the dtypes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes = set[torch.dtype]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ in PRODUCTS:
            self.dtypes.add(args[-1].dtype)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.bf16, torch.bfloat16), (Precision.fp32, torch.float32)]
)
def test_bf16_leaves_no_product_in_fp32(
    chain: Chain, precision: Precision, dtype: torch.dtype
) -> None:
    model = install_scoring(load_model(chain.folder("sft") / "model")).train()
    torch.manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (4, 20))
    with Products() as products:
        with autocast(precision, model.device):
            out = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True
            )
        out.loss.backward()
    # The head's gradients are added up in fp32 (`addmm_`), on a GPU from bf16 factors.
    assert products.dtypes == {dtype}


class Rounded(TorchDispatchMode):
    """Count how often each layer's weights are rounded to bf16; the head rounds its own."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.times = Counter[int]()
        self.weights = {p.data_ptr() for name, p in model.named_parameters() if "proj" in name}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__ == "_to_copy" and args[0].data_ptr() in self.weights:
            self.times[args[0].data_ptr()] += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_an_evaluation_rounds_a_weight_once_and_to_the_same_losses(
    name: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluate row by row."""
    precisions: list[tuple[int, Any, Any]] = []

    def evaluated(trainer: Trainer, *_: Any) -> None:
        with Rounded(trainer.model) as rounded:
            once = trainer.evaluate()
        monkeypatch.setattr(
            stages.training.trainer, "round_weights_once", lambda device: contextlib.nullcontext()
        )
        precisions.append((max(rounded.times.values()), once, trainer.evaluate()))
        raise UserError("enough")

    module = {"sft": sft, "dpo": dpo}[name]
    monkeypatch.setattr(stages.training.fit, "train_with_callbacks", evaluated)
    inputs = {
        "sft": {"base": chain.folder("base"), "data": chain.folder("data")},
        "dpo": {
            "policy": chain.folder("sft"),
            "pairs": chain.folder("pairs"),
            "reference": chain.folder("reference"),
        },
    }
    cfg = vars(settings("recipe=tiny", "precision=bf16"))[name]
    with pytest.raises(UserError, match="enough"):
        module.run(cfg, inputs[name], StageDir(tmp_path, lambda metrics, step: None))
    [(times, once, each)] = precisions
    assert times == 1
    assert once["eval_loss"] == each["eval_loss"]


@pytest.mark.parametrize("name", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("override", "way_out"),
    [
        ("tf32=true", "Set {}.precision instead"),
        ("torch_compile=true", "Leave it out"),
        ("torch_compile_backend=inductor", "Leave it out"),
        ("liger_kernel_config={fused_linear_cross_entropy: true}", "Leave it out"),
    ],
)
def test_kernels_that_are_refused(name: str, override: str, way_out: str) -> None:
    cfg = settings("recipe=tiny", f"{name}.trainer.extra.{override}")
    with pytest.raises(UserError, match=way_out.format(name)):
        validate_trainer(name, vars(cfg)[name])


@pytest.mark.parametrize("align", ["dpo", "kto", "grpo"])
def test_liger_keeps_the_forward_that_has_the_fused_head(align: str, tmp_path: Path) -> None:
    block = vars(settings("recipe=tiny", f"align={align}"))[align]
    block.trainer.use_liger_kernel = True
    args = training_arguments(block, StageDir(tmp_path, lambda metrics, step: None))
    assert args.liger_kernel_config == {"fused_linear_cross_entropy": False}


def test_liger_kernels_need_their_package_and_a_gpu() -> None:
    cfg = settings("recipe=tiny", "dpo.trainer.use_liger_kernel=true", "dpo.runtime.device=cpu")
    with pytest.raises(UserError, match=r"\[liger\]"):
        validate_trainer("dpo", cfg.dpo)
