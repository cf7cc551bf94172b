"""python run.py stage=STAGE [recipe=NAME] [KEY=VALUE …] [-m]: compose, plan, execute."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stages import cli, config
from stages.errors import UserError

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    cli.caches(Path(cfg.outputs))
    from stages import pipeline

    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UserError(f"{missing[0]} is required and has no value.")
    job = HydraConfig.get()
    try:
        pipeline.run(OmegaConf.to_object(cfg), list(job.overrides.task), float(os.environ["PLUMBLINE_STARTED"]))
    except UserError as error:
        if job.mode is RunMode.MULTIRUN:
            raise  # Hydra names the job
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli.environment()
    sys.argv[1:] = cli.normalise(sys.argv[1:])
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command resumes it")
    except Exception as error:
        if (line := cli.explain(error)) is None:
            raise
        sys.exit(f"error: {line}")
