"""`tracker=trackio`: runs in trackio."""

from dataclasses import dataclass

from stages.config.blocks.processes import Tracker


@dataclass
class TrackioKeys(Tracker):
    trackio: bool = False


BLOCKS = {"tracker": TrackioKeys}
