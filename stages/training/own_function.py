"""A user-defined function that a training calls in every step: `own` of an objective's block."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from accelerate.utils.memory import should_reduce_batch_size

from stages.config.blocks.models import Own
from stages.config.errors import UserError
from stages.store import plugins


class OwnFunction:
    """The user's function, which takes the `arguments` by position and the options by name."""

    arguments: ClassVar[tuple[str, ...]]

    def __init__(self, own: Own, key: str, node: Path):
        """Load the function into the folder `node`. Raise UserError if it cannot be called with these arguments."""
        self.own = own
        self.key = key
        self.node = node
        self.function: Callable[..., Any] = plugins.run_file(own, key, node)
        template = f"def {own.name}({', '.join(self.arguments)})"
        try:
            inspect.signature(self.function).bind(*self.arguments, **own.options)
        except (TypeError, ValueError) as error:
            way_out = f"Write {template}; {key}.options sets further arguments."
            raise UserError(f"{self.place}: {error}. {way_out}") from error

    @property
    def place(self) -> str:
        """The setting, the function and its file, for messages."""
        return f"{self.key}.name={self.own.name} in {Path(str(self.own.file)).name}"

    def call(self, *arguments: Any) -> Any:
        """Return what the function returns. Raise UserError with the line if it fails."""
        try:
            return self.function(*arguments, **self.own.options)
        except (Exception, SystemExit) as error:
            # the trainer retries with smaller micro-batches
            if isinstance(error, Exception) and should_reduce_batch_size(error):
                raise
            line = plugins.line_of(error, self.node / plugins.COPY)
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{self.place}, line {line}: {problem}.") from error
