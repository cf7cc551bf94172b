"""`tracker=tensorboard`: runs in TensorBoard."""

from dataclasses import dataclass

from stages.config.blocks.processes import Tracker


@dataclass
class TensorBoardKeys(Tracker):
    tensorboard: bool = False


BLOCKS = {"tracker": TensorBoardKeys}
