"""`stage=examine`: what is wrong with a model that was trained elsewhere, beside the model that it started from.

The word of `align` is `given`. Without preferences, or where a model cannot be run, its files alone are compared."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from omegaconf import II

from stages.config import choices
from stages.config.blocks.models import Model, SeveralModels
from stages.config.blocks.runtimes import DeviceRuntime
from stages.config.command_record import Standalone
from stages.config.limits import computed, several, words


@dataclass
class ExamineRuntime(DeviceRuntime):
    device: str = words(*choices.DEVICES, default="auto")


@dataclass
class Examine(Standalone):
    """A model that was trained elsewhere, and the model that its training started from."""

    way_to_models: ClassVar[str] = (
        "An examination of one model reads preferences for it. Set label.path=FILE."
    )

    # the trained model: a folder, a hub id, or the folder of an adapter; several, as A,B,C, are compared by their files
    model: str | None = several(None)
    # the model that its training started from; null: model.path, or the base that an adapter names
    before: str | None = None
    rows: int = 3  # preferences that are shown token by token, as either model reads them
    strict: bool = False  # true: exit code 1 if a fault is certain
    precision: choices.Precision = field(default=II("precision"))
    runtime: ExamineRuntime = field(default_factory=ExamineRuntime)
    # why the models are not run
    left_out: str | None = computed(None)

    @property
    def models(self) -> list[str]:
        """The trained models: several are named as A,B,C."""
        return [name.strip() for name in (self.model or "").split(",") if name.strip()]

    def is_alone(self, cfg: Any) -> bool:
        """Return True if no model is run: there are no preferences, several models, or a model that cannot run."""
        if cfg.align is not choices.Align.given or not cfg.label.brings_pool:
            return False
        without_preferences = not cfg.label.path
        return without_preferences or self.left_out is not None or len(self.models) > 1

    def alone(self, cfg: Any, reason: str) -> Any:
        is_examination = cfg.align is choices.Align.given and cfg.stage in ("examine", "report")
        if not is_examination or self.is_alone(cfg):
            return None
        return replace(cfg, examine=replace(self, left_out=reason, strict=False))


@dataclass
class Folders(SeveralModels):
    """The folders of models that are compared key by key: of the model that a training started from, and of those that
    it made."""

    before: Model
    models: list[Model]
    titles: list[str]  # of all, in this order

    def with_models(self, pinned: Callable[[Model], Model]) -> Self:
        return replace(self, before=pinned(self.before), models=[*map(pinned, self.models)])


BLOCKS = {"examine": Examine}
EXIT_CODES = {1: "a certain fault with examine.strict"}
