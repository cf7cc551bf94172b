"""Download model folders from the Hugging Face hub, and push models and datasets to it."""

import os
from pathlib import Path
from typing import Literal

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from stages.config.errors import UserError
from stages.store.digests import files_of

Kind = Literal["model", "dataset"]  # of a repository
DOWNLOADED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
DOWNLOADED += ["README.md", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*"]  # the licence
# some repositories have a second copy of the weights, in another layout
NOT_DOWNLOADED = ["consolidated*"]


def download_model(repo: str, revision: str | None) -> Path:
    """Download one commit's model files into the hub's shared cache, and return their folder."""
    return Path(
        snapshot_download(
            repo, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=NOT_DOWNLOADED
        )
    )


def push_folder(
    folder: Path,
    repo: str,
    private: bool,
    message: str,
    card: str | None = None,
    kind: Kind = "model",
) -> str:
    """Push every file of the folder in one commit, with `card` as README, and return the address. The environment's
    HF_TOKEN authorises it. Raise UserError if the hub refuses, or cannot be reached."""
    content: dict[str, Path | bytes] = {str(p.relative_to(folder)): p for p in files_of(folder)}
    if card is not None:
        content["README.md"] = card.encode()
    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True, repo_type=kind))
        operations = [CommitOperationAdd(name, data) for name, data in content.items()]
        api.create_commit(repo, operations, commit_message=message, repo_type=kind)
    except Exception as error:  # network, hub and client raise exceptions of many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"export.repo={repo}: nothing was pushed. {reason[:300]}") from error
    return address
