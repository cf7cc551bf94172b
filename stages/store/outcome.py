"""The table of what became of answers."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa


@dataclass
class Outcome:
    """What became of a model's answer to a prompt; `passed`: all its checks."""

    prompt_id: str
    role: str
    passed: bool
    n_tokens: int
    stopped: bool

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("role", pa.string()),
            ("passed", pa.bool_()),
            ("n_tokens", pa.int32()),
            ("stopped", pa.bool_()),
        ]
    )
