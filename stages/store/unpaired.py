"""The table of single completions with a label, beside that of pairs."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from stages.store.records import MESSAGES, Message


@dataclass
class UnpairedPreference:
    """TRL's conversational columns for KTO, what the label comes from, and the token ids of the completion where they
    were drawn. One that was cut off (length) is undesirable. `score` is None where the label comes from preferences.
    """

    id: str
    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    label: bool
    score: float | None
    labeler: str
    candidate_id: str
    split: str  # train or validation
    completion_token_ids: list[int] | None = None
    completion_tokenizer: str | None = None
    finish_reason: str = "stop"
    policy: str | None = None

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("id", pa.string()),
            ("prompt_id", pa.string()),
            ("prompt", MESSAGES),
            ("completion", MESSAGES),
            ("label", pa.bool_()),
            ("score", pa.float64()),
            ("labeler", pa.string()),
            ("candidate_id", pa.string()),
            ("split", pa.string()),
            ("completion_token_ids", pa.list_(pa.int32())),
            ("completion_tokenizer", pa.string()),
            ("finish_reason", pa.string()),
            ("policy", pa.string()),
        ]
    )
