"""Packed pairs on the pretended accelerator: attention by `varlen_attn`, with the CPU's gradients, without waiting."""

import copy
from types import ModuleType

import pytest
import torch

from stages.models import packing
from stages.models.packing import add_layout, pack_pairs, send_batch
from tests.models.test_varlen_attention import Operators
from tests.pretend.test_device import tiny_model


@pytest.mark.extended
@pytest.mark.parametrize("works", [True, False])
def test_packed_pairs_learn_as_on_the_cpu_and_wait_for_nothing(
    pretend: ModuleType, works: bool
) -> None:
    """Check gradients by parameter, with all indices on the device, and with and without a working `varlen_attn`."""
    model = tiny_model()
    here = copy.deepcopy(model).to("pretend")
    ids = torch.randint(0, 100, (6, 17), generator=torch.Generator().manual_seed(0))
    ids[3:, :9] = ids[:3, :9]
    with pretend.strict(), pytest.MonkeyPatch.context() as patch:
        if not works:
            patch.setattr(packing, "varlen_works", lambda *_: False)
        operators, waits = Operators(), list[bytes]()
        listener = pretend.LISTENER(waits.append)
        for each in (model, here):
            assert pack_pairs(each)
            batch = send_batch(
                add_layout(each, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}),
                each.device,
            )
            # The first call tries the kernel, and waits for the result. Without a layout, it also reads lengths.
            each(input_ids=ids.to(each.device), use_cache=False)
            pretend.library().pretend_set_listener(listener)
            with operators:
                each(**batch, use_cache=False).logits.pow(2).mean().backward()
            pretend.library().pretend_set_listener(None)
    layers = model.config.num_hidden_layers
    assert operators.names.count("torch_attn::_varlen_attn") == works * layers
    assert not waits
    for (name, weight), weight_here in zip(
        model.named_parameters(), here.parameters(), strict=True
    ):
        assert (weight_here.grad.cpu() - weight.grad).norm() <= 1e-5 * weight.grad.norm(), name
