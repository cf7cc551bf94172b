"""The models of an examination, as a configuration names them."""

import os

from stages.config.blocks.models import Model
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.extras.examine import Examine, Folders
from stages.pipeline.evaluation_graph import name_folders
from stages.store.sealed_json import load_json, require_keys
from stages.store.source_files import ADAPTER_CONFIG, locate

MODEL, BEFORE = "examine.model", "examine.before"


def settings_of(cfg: Config) -> Examine:
    """Return the settings of an examination."""
    settings: Examine = vars(cfg)["examine"]
    return settings


def model_before(cfg: Config) -> str | None:
    """Return the model before a training elsewhere: model.path if nobody names it."""
    return settings_of(cfg).before or cfg.model.path


def trained_elsewhere(path: str, before: str | None) -> Model:
    """Return the block of `examine.model`. An adapter is merged into the model that it names, if that is on this
    machine, else into the model `before`."""
    place = locate(path, MODEL)
    if place is None or not (place / ADAPTER_CONFIG).is_file():
        return Model(path, None, key=MODEL)
    below = load_json(place / ADAPTER_CONFIG, require_keys()).get("base_model_name_or_path")
    if not isinstance(below, str) or not os.path.isdir(below):
        below = before
    return Model(below, None, adapter=path, key=MODEL)


def compared_folders(cfg: Config) -> Folders:
    """Return the block of the folders that an examination compares. Without a model before, it is the one that the
    first adapter names. Raise UserError if there is none."""
    names = settings_of(cfg).models
    before = cfg.model.path
    models = [trained_elsewhere(name, before) for name in names]
    before = before or models[0].path
    if before is None or before == names[0]:
        raise UserError(
            "stage=examine needs the model before the training too: examine.before=FOLDER. An adapter may name it."
        )
    titles = name_folders([before, *names])
    return Folders(Model(before, cfg.model.revision, key=BEFORE), models, titles)
