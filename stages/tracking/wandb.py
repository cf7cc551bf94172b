"""The tracker `tracker=wandb`: Weights & Biases (https://docs.wandb.ai), with files in `outputs/cache/wandb`.

Without an API key, runs are offline, and W&B does not ask for a key. `stage=sync` uploads them later."""

import logging
import netrc
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.config.schema import Tracker
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.text_units import transcript
from stages.store.workspace import read_samples
from stages.tracking.tracker import Run, describe_inputs, or_warn

log = logging.getLogger(__name__)

# Marker files in the folder of a run: W&B has its inputs; W&B did not answer when it ended.
LINKED, CUT_OFF = "inputs.told", "cut.off"
ROWS = 50  # of a table

Table = tuple[list[str], list[list[Any]]]  # columns, rows


class WandbRun(Run):
    """A run of W&B. Online, its inputs are linked at the start; offline, only its configuration names them."""

    def __init__(self, settings: Tracker, node: Node, root: Path):
        self.upload = settings.upload
        files, input_entries = prepare_folder(root), describe_inputs(node, root)
        import wandb

        run_mode = choose_mode()
        try:
            self.run = start(settings, node, files, input_entries, run_mode)
        except Exception as error:
            # also of a mode or another variable of W&B that it does not know
            log.warning(
                "warning: W&B cannot be reached (%s). stage=sync uploads this run later.", error
            )
            run_mode = "offline"
            self.run = start(settings, node, files, input_entries, run_mode)
        self.id = self.run.id
        if run_mode == "online":
            artifacts = [entry["artifact"] for entry in input_entries.values()]
            try:
                link_run(wandb.Api(), Path(self.run.dir).parent, self.run.path, artifacts)
            except Exception as error:
                log.warning(
                    "warning: W&B did not accept this run's inputs (%s). stage=sync tries again.",
                    error,
                )

    @or_warn
    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.run.log(metrics, step=step)

    @or_warn
    def published(self, folder: Path, manifest: Manifest) -> None:
        import wandb

        self.run.summary.update({**manifest["metrics"], "wall_seconds": manifest["wall_seconds"]})
        for name, (columns, rows) in read_tables(manifest["stage"], folder).items():
            self.run.log({name: wandb.Table(columns=columns, data=rows)})
        aliases = [manifest["fingerprint"], manifest["digest"][:12], "latest"]
        self.run.log_artifact(artifact(folder, manifest, self.upload), aliases=aliases)

    @or_warn
    def finish(self, failed: bool) -> None:
        try:
            self.run.finish(exit_code=int(failed))
        except TimeoutError:
            (Path(self.run.dir).parent / CUT_OFF).touch()
            log.warning(
                "warning: W&B does not answer any more. stage=sync uploads the rest of this run."
            )


def start(
    settings: Tracker, node: Node, files: Path, input_entries: dict[str, dict[str, str]], mode: str
) -> Any:
    import wandb

    return wandb.init(
        id=f"{node.stage}-{node.fingerprint}-{secrets.token_hex(4)}",  # one per attempt
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        job_type=node.stage,
        name=str(node),
        config={**asdict(node.config), "fingerprint": node.fingerprint, "inputs": input_entries},
        dir=str(files.parent),
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            init_timeout=30,
            finish_timeout=0 if settings.upload else 60,  # 0: no limit
            finish_timeout_raises=True,
            # No console output, code, arguments or git remote is sent, since they could contain a secret.
            console="off",
            disable_git=True,
            save_code=False,
            x_disable_meta=True,
        ),
    )


def artifact(folder: Path, manifest: Manifest, upload: bool) -> Any:
    """Return a W&B artifact with the files of a node (`upload`), or with references to them."""
    import wandb

    name = f"{manifest['stage']}-{manifest['fingerprint']}"
    key_figures = ("digest", "seed", "device", "wall_seconds", "peak_memory", "metrics", "remote")
    metadata = {key: manifest[key] for key in key_figures if key in manifest}
    logged = wandb.Artifact(name, type=manifest["stage"], metadata=metadata)
    for file, entry in manifest["files"].items():
        path = (folder / file).resolve()
        if upload:
            # without a copy: published files do not change
            logged.add_file(str(path), name=file, policy="immutable")
        else:
            # The store knows the SHA-256 already. W&B would read the file again for its MD5.
            for reference in logged.add_reference(path.as_uri(), name=file, checksum=False):
                reference.digest = entry["sha256"]
    return logged


def prepare_folder(root: Path) -> Path:
    """Create the folder for W&B's files, set it for its caches and logs too, and return it."""
    files = (root / "cache" / "wandb").resolve()
    files.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(variable, str(files))
    return files


def choose_mode() -> str:
    """Return the user's WANDB_MODE, which `process.prepare` has stored, else online if there is a key."""
    return os.environ.get("PLUMBLINE_WANDB_MODE") or ("online" if has_key() else "offline")


def has_key() -> bool:
    """Return whether a W&B key is in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def link_run(api: Any, run: Path, path: str, artifacts: Iterable[str]) -> list[str]:
    """Link a run to the artifacts that it used, mark its folder, and return the artifacts that W&B does not have.
    `path` is entity/project/id. The public API accepts links for a finished run without resuming it."""
    user = api.run(path)
    missing = list[str]()
    for name in artifacts:
        if api.artifact_exists(place := f"{path.rpartition('/')[0]}/{name}"):
            user.use_artifact(api.artifact(place))
        else:
            missing.append(name)
    if not missing:
        (run / LINKED).touch()
    return missing


def read_tables(stage: str, folder: Path) -> dict[str, Table]:
    """Return a node's tables by name: candidates of `label`, pairs of `pairs`, or the samples of a training."""
    read = {"label": candidates, "pairs": pairs}.get(stage, samples)
    table = read(folder)
    return {read.__name__: table} if table[1] else {}


def candidates(folder: Path) -> Table:
    """Return the table of candidates with a score: prompt, completion, score."""
    scored = pq.read_table(
        folder / "judgements.parquet", filters=pc.field("score").is_valid()
    ).slice(0, ROWS)
    texts = by_id(folder / "candidates.parquet", "candidate_id", "text", scored["candidate_id"])
    prompts = by_id(folder / "prompts.parquet", "id", "messages", scored["prompt_id"])
    rows = [
        [transcript(prompts[j["prompt_id"]]), texts[j["candidate_id"]], j["score"]]
        for j in scored.to_pylist()
    ]
    return ["prompt", "completion", "score"], rows


def pairs(folder: Path) -> Table:
    """Return the table of pairs: prompt, chosen, rejected, margin."""
    columns = ["prompt", "chosen", "rejected", "margin"]
    first = pq.read_table(folder / "pairs.parquet", columns=columns).slice(0, ROWS).to_pylist()
    return columns, [[*(transcript(p[name]) for name in columns[:3]), p["margin"]] for p in first]


def samples(folder: Path) -> Table:
    """Return the table of sample answers: step, prompt, answer before training, answer."""
    answers = read_samples(folder)
    before = {sample.id: sample.answer for sample in answers if sample.step == 0}
    rows = [[s.step, transcript(s.prompt), before.get(s.id, ""), s.answer] for s in answers]
    return ["step", "prompt", "before training", "answer"], rows


def by_id(path: Path, key: str, value: str, ids: Any) -> dict[str, Any]:
    rows = pq.read_table(
        path, columns=[key, value], filters=pc.field(key).isin(ids.combine_chunks())
    )
    return dict(zip(rows[key].to_pylist(), rows[value].to_pylist(), strict=True))
