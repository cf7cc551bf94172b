"""Checkpoints that say whether they are complete: a resume from a torn one would train other weights on, silently."""

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.store.store import file_digest, sync
from stages.store.work import SCRATCH, Work

MARKER = "complete.json"


def checkpoint_folder(out: Work) -> Path:
    return out / SCRATCH / "checkpoints"


class Checkpoints(TrainerCallback):
    """Mark a checkpoint complete, with digests of its files, and only then drop the ones before it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        processes = PartialState()
        processes.wait_for_everyone()  # every process writes files of its own into it
        if not processes.is_main_process:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        digests = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            sync(path)
            digests[str(path.relative_to(folder))] = file_digest(path)
        draft = folder / f"{MARKER}.draft"
        draft.write_text(json.dumps(digests))
        draft.rename(folder / MARKER)
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other)


def newest_complete(folder: Path) -> Path | None:
    """The last checkpoint whose files have the digests in its marker. Later ones, which are torn, are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    for checkpoint in found:
        marker = checkpoint / MARKER
        digests = json.loads(marker.read_text()) if marker.exists() else {}
        if digests and all((checkpoint / n).exists() and file_digest(checkpoint / n) == d for n, d in digests.items()):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None
