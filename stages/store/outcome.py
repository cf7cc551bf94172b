"""The table of what became of answers."""

from dataclasses import dataclass

from stages.store.table_schema import Int32


@dataclass
class Outcome:
    """What became of a model's answer to a prompt; `passed`: all its checks."""

    prompt_id: str
    role: str
    passed: bool
    n_tokens: Int32
    stopped: bool
