"""`tracker=mlflow`: runs in MLflow."""

from dataclasses import dataclass

from stages.config.blocks.processes import Tracker


@dataclass
class MLflowKeys(Tracker):
    mlflow: bool = False


BLOCKS = {"tracker": MLflowKeys}
