"""Checks of model folders and files that read only headers and config.json, never weights."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.config.blocks.models import Model
from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.models import safe_folder
from stages.store.node import Node
from stages.store.source_files import locate, resolve_commit
from stages.store.store import Store

SCORES = "ForSequenceClassification"  # in the class names of transformers' models with a score head
HEADS = ("score.", "classifier.", "classification_head.")  # prefixes of a score head's tensor names
TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def require_model(node: Node, store: Store) -> None:
    """Raise UserError if the stage `base` cannot load the model at its path."""
    model = node.config
    if not model.path:
        return
    key = f"{model.key}={model.path}"
    place = locate(model.path, model.key)
    if place is None:
        resolve_commit(model.path, model.revision, "model", model.key)
    elif place.is_dir():
        require_folder(place, key)
    elif place.suffix == ".gguf":
        model_shape.refuse_pointer(place)
    else:
        raise UserError(f"{key}: a single file must be a .gguf. For safetensors, name the folder.")


def require_reward_model(node: Node, store: Store) -> None:
    """Raise UserError if `label.path` is not a model with one score output and a chat template."""
    label = node.config
    if not label.path:
        return
    key = f"label.path={label.path}"
    folder = locate(label.path, "label.path")
    if folder is None:
        resolve_commit(label.path, label.revision, "model", "label.path")
    elif folder.is_dir():
        require_scores(folder, key)
    else:
        raise UserError(f"{key}: a reward model is a folder of safetensors. Name the folder.")


def require_scores(folder: Path, key: str) -> None:
    """Raise UserError if a model does not give one score, or has no chat template."""
    config = require_folder(folder, key)
    classes = str(config.get("architectures") or "")
    has_head = any(
        name.startswith(HEADS)
        for file in folder.glob("*.safetensors")
        for name in tensor_names(file, key)
    )
    if classes and SCORES not in classes and not has_head:
        raise UserError(f"{key}: {classes} gives no scores. Name a …{SCORES} model.")
    labels = config.get("id2label")
    outputs = config.get("num_labels", 2)  # 2 in transformers
    if isinstance(labels, dict) and labels:
        outputs = len(labels)
    if outputs != 1:
        raise UserError(f"{key}: its config.json has {outputs} outputs. Name a model with one.")
    if not (folder / "contract.json").exists() and not has_chat_template(folder):
        raise UserError(f"{key}: its tokenizer has no chat template. Save that of its training.")


def require_folder(folder: Path, key: str) -> dict[str, Any]:
    """Return a model folder's config.json. Raise UserError, naming `key`, for a missing part or unsafe files."""
    try:
        safe_folder.validate_folder(folder)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: the folder has no config.json. Name the folder of a model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{key}: {folder} has no *.safetensors. Convert the weights to safetensors."
        )
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(
            f"{key}: the folder has no tokenizer. Save the model's tokenizer.json there."
        )
    return model_shape.read_config(folder)


def tensor_names(file: Path, key: str) -> list[str]:
    """Return the tensor names in the header of a safetensors file."""
    try:
        with safe_open(file, "numpy") as content:
            return list(content.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{key}: {file.name} cannot be read as safetensors: {error}. Copy it again."
        ) from error


def has_chat_template(folder: Path) -> bool:
    """Return whether a model's tokenizer has a chat template, in a file of its own or among its settings."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    file = folder / "tokenizer_config.json"
    config = safe_folder.read_json(file) if file.is_file() else None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def model_config(cfg: Model, published: Path | None = None) -> dict[str, Any] | None:
    """Return a base model's config.json from its node's `published` folder, else what `model.config` says of it, else
    from its path in `cfg`; None if the hub cannot be reached, or for a GGUF file until it is published."""
    if published and (published / "config.json").exists():
        return model_shape.read_config(published)
    if cfg.random_init:
        return cfg.random_init.config_json
    # else a group's, for its own path
    if cfg.config and cfg.config.get("_name_or_path", cfg.path) == cfg.path:
        return cfg.config
    local = locate(str(cfg.path), cfg.key)
    if local is None:
        return hub_config(str(cfg.path), cfg.revision)
    return model_shape.read_config(local) if local.is_dir() else None


def hub_config(repo: str, revision: str | None) -> dict[str, Any] | None:
    """Return a hub model's config.json, downloaded or from the cache; None if it is in neither."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(repo, "config.json", revision=revision)
        return model_shape.read_config(Path(file).parent)
    except (LocalEntryNotFoundError, HfHubHTTPError):
        return None
