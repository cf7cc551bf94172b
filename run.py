"""python run.py stage=STAGE [recipe=NAME] [KEY=VALUE …] [-m]: compose, plan, execute."""

import logging
import os
import shutil
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from stages import checks, cli, config, gc, hardware, pipeline, plan, provenance
from stages.config import Config, Stage, Upstream
from stages.errors import UserError
from stages.store import Store

log = logging.getLogger(__name__)
config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> None:
    """Build the target that `stage` names, or use what was built: chat, export, the plan, garbage collection."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    try:
        if missing := sorted(OmegaConf.missing_keys(composed)):
            raise UserError(f"{missing[0]} is required and has no value.")
        cli.unknown_keys(composed)
        cfg: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
        cli.caches(Path(cfg.outputs))
        checks.refuse(cfg)
        hardware.resolve_precision(cfg)
        store = Store(Path(cfg.outputs), cfg.rebuild, since=float(os.environ.get("PLUMBLINE_STARTED", time.time())))
        nodes = pipeline.graph(cfg, store.root / "cache" / "digests.json")
        if cfg.stage is Stage.plan:
            plan.show(nodes, store)
        elif cfg.stage is Stage.gc:
            gc.collect(store, cfg.gc.remove)
        else:
            targets = pipeline.targets(cfg, nodes)
            if cfg.upstream is Upstream.require:
                pipeline.require_inputs(targets, store, overrides)
            pipeline.build(targets, store, cfg.tracker, cfg.launch, overrides)
            if cfg.stage is Stage.report:
                shutil.copy(store.folder(targets[0]) / "report.html", store.root)
                log.info("The report: %s", store.root / "report.html")
            elif cfg.stage is Stage.chat:
                from stages import chat

                chat.talk(cfg.chat, {node.stage: store.folder(node) for node in targets})
            elif cfg.stage is Stage.export:
                from stages import export

                export.write(cfg.export, targets[0], nodes["eval"], store)
            else:
                log.info("Next: %s", provenance.command(pipeline.NEXT[cfg.stage], overrides))
    except UserError as error:
        if not HydraConfig.initialized() or HydraConfig.get().mode is RunMode.MULTIRUN:
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
