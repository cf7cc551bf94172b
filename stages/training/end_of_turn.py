"""Whether a trained model can tell the end of a turn from tokens that were never trained.

No text has such tokens, so that training has only ever pushed them down: their rows of the output embedding share a
direction. The row of an end of turn that the base never saw lies among them. Sampling then draws those tokens in its
place, and a preference loss that pushes them down pushes the end of turn down, too.
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

ALIKE_COSINE = 0.8  # cosine from which on two rows are alike
# So many rows are warned of. The demo's instruct model has 117, and its candidates end. Random stand-ins for a base,
# as in the tests, had 1,371 and 2,472 after SFT, and 35% and 31% of their candidates ended at temperature 0.9.
MANY_ALIKE_ROWS = 1000
ROWS_AT_ONCE = 8192  # of the embedding that are in memory at once


def check_end_of_turn(cfg: SFT, base: Path, published: Path, contract: Contract, out: StageDir) -> dict[str, Any]:
    """Return how like others the end of turn's row is, in base and `published` model; warn if the latter is like."""
    token = contract.stop_ids[0]
    before, after = measure_similarity(base, token), measure_similarity(published, token)
    if after.get("alike", 0) >= MANY_ALIKE_ROWS:
        advice = f"A higher {cfg.block}.learning_rate or more {cfg.block}.epochs tell it further apart."
        if cfg.adapter is not Adapter.none:
            advice = f"{cfg.block}.adapter=none trains its row, which an adapter leaves as it is."
        out.warn(
            f"the model hardly tells its end of turn {contract.token(token)} from tokens that were never trained: "
            f"{after['alike']:,} rows of the output embedding have a cosine of {ALIKE_COSINE:g} or more with that of the end "
            f"of turn ({after['nearest']:.2f} the nearest). Sampling draws such tokens in its place, and DPO that "
            "pushes them down pushes the end of turn down, too. Lower sample.temperatures, and set "
            f"pairs.unfinished=drop. {advice if cfg.train else ''}".strip()
        )
    return {"token": contract.tokenizer.convert_ids_to_tokens(token), "before": before, "after": after}


def measure_similarity(model: Path, token: int) -> dict[str, Any]:
    """Return the highest cosine between a token's row of the output embedding and another row, the id of that row, and
    how many rows are ALIKE. Return nothing for a model without such a row."""
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
