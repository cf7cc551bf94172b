"""Give the end of a turn a row of its own, and check that the trained model distinguishes it from untrained tokens.

No text contains untrained tokens, so training only lowers their logits, and their rows of the output embedding become
parallel. The row of an end of turn that the base never saw is one of these rows. Sampling then draws untrained tokens
in its place, and a preference loss that lowers their logits lowers the end of turn too. So SFT begins with
another row: that of the base's end of sequence, which ended its texts, or a random one."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from stages.config.blocks.training import SFT, FirstModel
from stages.config.choices import Adapter
from stages.models.contract import Contract
from stages.models.loading import locate_output_embedding
from stages.store.workspace import StageDir

ALIKE_COSINE = 0.8  # rows with at least this cosine are similar
# This many similar rows cause a warning. The demo's instruct model has 117, and its candidates end. Random stand-ins
# for a base, as in the tests, had 1,371 and 2,472 after SFT: 35% and 31% of their candidates ended at temperature 0.9.
MANY_ALIKE_ROWS = 1000
ROWS_AT_ONCE = 8192  # of the embedding that are in memory at once


@torch.no_grad()
def separate_end_of_turn(model: PreTrainedModel, contract: Contract) -> PreTrainedModel:
    """Return the model with other embedding rows of its end of turn, if many rows of the output embedding are similar.
    A model on the meta device stays as it is: another process sends its rows."""
    head = model.get_output_embeddings()
    token = contract.stop_ids[0]
    if head is None or head.weight.is_meta or not is_untrained(head.weight, token):
        return model
    trained = next(
        (stop for stop in contract.stop_ids if not is_untrained(head.weight, stop)), None
    )
    # a single one if they are tied
    for weight in (model.get_input_embeddings().weight, head.weight):
        if trained is not None:
            weight[token] = weight[trained]
        else:
            direction = torch.randn(
                weight.shape[1], generator=torch.Generator().manual_seed(token)
            ).to(weight)
            weight[token] = direction * (weight.norm(dim=-1).mean() / direction.norm())
    return model


def is_untrained(rows: torch.Tensor, token: int) -> bool:
    return count_alike(similarities(rows, token, len(rows))) >= MANY_ALIKE_ROWS


def check_end_of_turn(
    cfg: FirstModel, base: Path, published: Path, contract: Contract, out: StageDir
) -> dict[str, Any]:
    """Return how similar the end of turn's row is to others before and after. Warn of many similar rows after."""
    token = contract.stop_ids[0]
    before = measure_similarity(base, token)
    after = measure_similarity(published, token)
    if after.get("alike", 0) >= MANY_ALIKE_ROWS:
        advice = ""
        if isinstance(cfg, SFT):
            advice = f"A higher {cfg.block}.learning_rate or more {cfg.block}.epochs make the rows differ more."
        if isinstance(cfg, SFT) and cfg.adapter is not Adapter.none:
            advice = f"{cfg.block}.adapter=none trains this row; an adapter does not."
        out.warn(
            f"the model hardly distinguishes its end of turn {contract.token(token)} from untrained tokens: "
            f"{after['alike']:,} rows of the output embedding have a cosine of at least {ALIKE_COSINE:g} with its row "
            f"(the highest is {after['nearest']:.2f}). Sampling may draw untrained tokens in its place, and DPO may "
            "make the end of turn less likely. Lower sample.temperatures, and set pairs.unfinished=drop. "
            f"{advice}".strip()
        )
    return {
        "token": contract.tokenizer.convert_ids_to_tokens(token),
        "before": before,
        "after": after,
    }


def measure_similarity(model: Path, token: int) -> dict[str, Any]:
    """Return the highest cosine of a token's output embedding with another row, that row's id, and the number of
    similar rows. Return {} for a model without such a row."""
    location = locate_output_embedding(model)
    if location is None:
        return {}
    file, name = location
    with safe_open(file, framework="pt") as tensors:
        weight = tensors.get_slice(name)
        if token >= weight.get_shape()[0]:
            return {}
        cosines = similarities(weight, token, weight.get_shape()[0])
    return {
        "nearest": float(cosines.max()),
        "nearest_id": int(cosines.argmax()),
        "alike": count_alike(cosines),
    }


def similarities(rows: Any, token: int, count: int) -> torch.Tensor:
    """Return the cosines of a token's row with all `count` rows, and -1 with itself. Not all are in memory at once."""
    row = torch.nn.functional.normalize(rows[token : token + 1].float(), dim=-1)[0]
    parts = (rows[start : start + ROWS_AT_ONCE].float() for start in range(0, count, ROWS_AT_ONCE))
    cosines = torch.cat([torch.nn.functional.normalize(part, dim=-1) @ row for part in parts])
    cosines[token] = -1.0
    return cosines


def count_alike(cosines: torch.Tensor) -> int:
    return int((cosines >= ALIKE_COSINE).sum())
