"""Tests of what is known of a model before anything is built, from its config.json alone."""

import json
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.preflight import model_files
from stages.store.store import Store
from tests.helpers import nodes


@pytest.mark.parametrize(
    ("kind", "reads"),
    [
        ("llama", True),
        ("qwen3", True),
        ("gemma3_text", True),
        *(
            (kind, False)
            for kind in ("gemma2", "gpt_oss", "qwen3_5_text", "qwen3_next", "nemotron_h")
        ),
    ],
)
def test_a_model_that_grpo_cannot_read_is_refused_before_anything_is_built(
    kind: str, reads: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **heads}))
    planned = nodes(
        tmp_path,
        "align=grpo",
        "model.random_init=null",
        f"model.path={tmp_path}",
        "sft.adapter=none",
    )
    if reads:
        return model_files.require_groups(planned["grpo"], Store(tmp_path))
    with pytest.raises(UserError, match=rf"a {kind} model's layers .* align=dpo"):
        model_files.require_groups(planned["grpo"], Store(tmp_path))
