"""Checks of the settings of an examination."""

from stages.config.choices import Align
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.extras.examine import Examine
from stages.extras.examine.trained_models import model_before, settings_of


def validate(cfg: Config) -> None:
    """Raise UserError for a model to examine that is not named, or if something is trained beside it."""
    settings = settings_of(cfg)
    if cfg.align is not Align.given:
        if cfg.stage == "examine":
            raise UserError(
                f"stage=examine: this configuration trains align={cfg.align} itself. Take recipe=examine."
            )
        return
    if settings.models and settings.is_alone(cfg):
        validate_folders_alone(cfg, settings)
        return
    before = model_before(cfg)
    if not (settings.model and before):
        raise UserError(
            "stage=examine needs the trained model and the one before its training: examine.model=FOLDER "
            "examine.before=FOLDER."
        )
    if cfg.sft.train or not cfg.label.brings_pool or cfg.model.path != before:
        raise UserError(
            "align=given trains nothing and reads preferences. Take recipe=examine without sft, model and label."
        )


def validate_folders_alone(cfg: Config, settings: Examine) -> None:
    """Raise UserError for preferences beside several models: their answers are compared one model at a time."""
    names = settings.models
    if len(names) > 1 and vars(cfg.label).get("path"):
        raise UserError(
            f"examine.model={settings.model}: several models are compared by their files alone. Leave label.path out, or "
            f"name one: examine.model={names[0]}"
        )
