"""Tests of arithmetic: no TF32, a fused optimizer, and no kernels that silently replace layers."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.config.trainers import validate_trainer
from stages.models.loading import load_model
from stages.models.scoring import autocast, install_scoring
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
