"""The table of single completions with a label, beside that of pairs."""

from dataclasses import dataclass

from stages.store.records import Message
from stages.store.table_schema import Int32


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
    completion_token_ids: list[Int32] | None = None
    completion_tokenizer: str | None = None
    finish_reason: str = "stop"
    policy: str | None = None
