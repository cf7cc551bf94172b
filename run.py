"""python run.py stage=STAGE [recipe=NAME] [KEY=VALUE …] [-m]: compose, plan, execute."""

import logging
import shutil
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from stages import cli, compare, config, gc, pipeline, plan, provenance, sweep
from stages.config import Stage, Upstream
from stages.errors import UserError

log = logging.getLogger(__name__)
config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> float | None:
    """Build the target that `stage` names and return what a sweep may optimise; or plan, compare, collect garbage."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    try:
        cfg, store, nodes = cli.prepare(composed)
        if cfg.stage is Stage.plan:
            plan.show(nodes, store)
        elif cfg.stage is Stage.gc:
            gc.collect(store, cfg.gc.remove)
        elif cfg.stage is Stage.compare:
            compare.show(store, cfg.compare)
        else:
            targets = pipeline.targets(cfg, nodes)
            if cfg.upstream is Upstream.require:
                pipeline.require_inputs(targets, store, overrides)
            if HydraConfig.initialized():
                sweep.remember(nodes)
            pipeline.build(targets, store, cfg.tracker, overrides)
            if cfg.stage is Stage.report:
                shutil.copy(store.folder(targets[0]) / "report.html", store.root)
                log.info("The report: %s", store.root / "report.html")
            else:
                log.info("Next: %s", provenance.command(pipeline.NEXT[cfg.stage], overrides))
            return sweep.objective(cfg, nodes, store)
    except UserError as error:
        if not HydraConfig.initialized() or HydraConfig.get().mode is RunMode.MULTIRUN:
            raise  # stages/sweep.py names the job
        sys.exit(f"error: {error}")
    return None


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
