"""The tracker `tracker=trackio`: a local dashboard without an account (https://github.com/gradio-app/trackio).

Its files are in `outputs/cache/trackio`. To open it, type `TRACKIO_DIR=outputs/cache/trackio trackio show`."""

import io
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.config.schema import Tracker
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.tracking import logged_tables
from stages.tracking.tracker import Run, artifact_metadata, describe_inputs


class TrackioRun(Run):
    """A run of Trackio. Its lineage is complete without a network."""

    def __init__(self, settings: Tracker, node: Node, root: Path):
        try:
            import trackio
        except ModuleNotFoundError as error:
            raise UserError(
                f"tracker=trackio: {error}. Install it with {install_command('trackio')}, or set tracker=none."
            ) from error
        self.upload = settings.upload
        input_entries = describe_inputs(node, root)
        with redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                project=settings.project,
                name=str(node),
                group=settings.group or node.stage,
                config={**asdict(node.config), "fingerprint": node.fingerprint, "inputs": input_entries},
                embed=False,
            )
        for entry in input_entries.values():
            try:
                self.run.use_artifact(entry["artifact"])
            except ValueError:
                continue  # the input was built with another tracker; the run's configuration names it

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics, step=step)

    def published(self, folder: Path, manifest: Manifest) -> None:
        """Log figures, tables and the artifact: references to the files, or copies with `tracker.upload`."""
        import trackio

        tables = logged_tables.read_tables(manifest["stage"], folder).items()
        logged = {name: trackio.Table(columns=columns, data=rows) for name, (columns, rows) in tables}
        self.run.log({**figures(manifest["metrics"]), "wall_seconds": manifest["wall_seconds"], **logged})
        name = f"{manifest['stage']}-{manifest['fingerprint']}"
        artifact = trackio.Artifact(name, type=manifest["stage"], metadata=artifact_metadata(manifest))
        for file in manifest["files"]:
            path = (folder / file).resolve()
            if self.upload:
                artifact.add_file(path, name=file)
            else:
                artifact.add_reference(path.as_uri(), name=file)
        self.run.log_artifact(artifact, aliases=[manifest["fingerprint"], manifest["digest"][:12]])

    def finish(self, failed: bool) -> None:
        import trackio

        with redirect_stdout(io.StringIO()):
            trackio.finish()


def figures(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested metrics by path: `delta/dpo-sft/mean`."""
    numbers = dict[str, float]()
    for key, value in metrics.items():
        if isinstance(value, dict):
            numbers |= figures(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[prefix + key] = value
    return numbers
