"""Check that a trained model can distinguish the end of a turn from tokens that were never trained.

No text contains untrained tokens, so training only lowers their logits, and their rows of the output embedding become
parallel. The row of an end of turn that the base never saw is one of these rows. Sampling then draws untrained tokens
in its place, and a preference loss that lowers their logits lowers the end of turn too.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from stages.config.blocks.training import SFT
from stages.config.choices import Adapter
from stages.models.contract import Contract
from stages.models.loading import locate_output_embedding
from stages.store.workspace import StageDir

ALIKE_COSINE = 0.8  # rows with at least this cosine are similar
# This many similar rows cause a warning. The demo's instruct model has 117, and its candidates end. Random stand-ins
# for a base, as in the tests, had 1,371 and 2,472 after SFT: 35% and 31% of their candidates ended at temperature 0.9.
MANY_ALIKE_ROWS = 1000
ROWS_AT_ONCE = 8192  # of the embedding that are in memory at once


def check_end_of_turn(cfg: SFT, base: Path, published: Path, contract: Contract, out: StageDir) -> dict[str, Any]:
    """Return how similar the end of turn's row is to other rows, in the base and in the published model. Warn if the
    published model has many similar rows."""
    token = contract.stop_ids[0]
    before, after = measure_similarity(base, token), measure_similarity(published, token)
    if after.get("alike", 0) >= MANY_ALIKE_ROWS:
        advice = f"A higher {cfg.block}.learning_rate or more {cfg.block}.epochs make the rows differ more."
        if cfg.adapter is not Adapter.none:
            advice = f"{cfg.block}.adapter=none trains this row; an adapter does not."
        out.warn(
            f"the model hardly distinguishes its end of turn {contract.token(token)} from untrained tokens: "
            f"{after['alike']:,} rows of the output embedding have a cosine of at least {ALIKE_COSINE:g} with its row "
            f"(the highest is {after['nearest']:.2f}). Sampling may draw untrained tokens in its place, and DPO may "
            "make the end of turn less likely. Lower sample.temperatures, and set pairs.unfinished=drop. "
            f"{advice if cfg.train else ''}".strip()
        )
    return {"token": contract.tokenizer.convert_ids_to_tokens(token), "before": before, "after": after}


def measure_similarity(model: Path, token: int) -> dict[str, Any]:
    """Return the highest cosine of a token's output embedding with another row, that row's id, and the number of
    similar rows. Return {} for a model without such a row."""
    if (location := locate_output_embedding(model)) is None:
        return {}
    file, name = location
    with safe_open(file, framework="pt") as tensors:
        weight = tensors.get_slice(name)
        count = weight.get_shape()[0]
        if token >= count:
            return {}
        row = torch.nn.functional.normalize(weight[token : token + 1].float(), dim=-1)[0]
        cosines = torch.empty(count)
        for start in range(0, count, ROWS_AT_ONCE):
            rows = torch.nn.functional.normalize(weight[start : start + ROWS_AT_ONCE].float(), dim=-1)
            cosines[start : start + ROWS_AT_ONCE] = rows @ row
    cosines[token] = -1.0
    alike = int((cosines >= ALIKE_COSINE).sum())
    return {"nearest": float(cosines.max()), "nearest_id": int(cosines.argmax()), "alike": alike}
