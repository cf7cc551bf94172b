"""Checks of model folders and files that read only headers and config.json, never weights."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.config.blocks.models import Model
from stages.config.errors import UserError
from stages.config.installation import read_beside
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

TEXTS = read_beside(__file__)


def require_model(node: Node, store: Store) -> None:
    """Raise UserError if the stage `base` cannot load the model at its path."""
    cfg = node.config
    if not cfg.path:
        return
    key = f"{cfg.key}={cfg.path}"
    if (place := locate(cfg.path, cfg.key)) is None:
        resolve_commit(cfg.path, cfg.revision, "model", cfg.key)
    elif place.is_dir():
        require_folder(place, key)
    elif place.suffix != ".gguf" or not place.is_file():
        raise UserError(f"{key}: a single file must be a .gguf. For safetensors, name the folder.")
    else:
        model_shape.refuse_pointer(place)


def require_reward_model(node: Node, store: Store) -> None:
    """Raise UserError if `label.path` is not a model with one score output and a chat template."""
    cfg, setting = node.config, "label.path"
    if not cfg.path:
        return
    key = f"{setting}={cfg.path}"
    if (folder := locate(cfg.path, setting)) is None:
        resolve_commit(cfg.path, cfg.revision, "model", setting)
        return
    if not folder.is_dir():
        raise UserError(
            f"{key}: a reward model is a folder of safetensors, not a file. Name the folder."
        )
    config = require_folder(folder, key)
    if not isinstance(listed := config.get("architectures") or [], list):
        raise UserError(
            f"{key}: `architectures` in its config.json is no list of class names. Copy the file again."
        )
    classes = [str(name) for name in listed]
    tensors = {name for file in folder.glob("*.safetensors") for name in tensor_names(file, key)}
    if (
        classes
        and not any(SCORES in name for name in classes)
        and not any(name.startswith(HEADS) for name in tensors)
    ):
        raise UserError(
            f"{key}: {classes[0]} gives no scores. Name a …{SCORES} model with one output."
        )
    labels = config.get("id2label")
    # 2 in transformers
    outputs = len(labels) if isinstance(labels, dict) and labels else config.get("num_labels", 2)
    if outputs != 1:
        raise UserError(
            f"{key}: its config.json has {outputs} outputs. Name a model with one output."
        )
    if not (folder / "contract.json").exists() and not has_chat_template(folder):
        raise UserError(TEXTS["no_template"].format(key=key))


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
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    file = folder / "tokenizer_config.json"
    config = safe_folder.read_json(file) if file.is_file() else {}
    return isinstance(config, dict) and bool(config.get("chat_template"))


def model_config(cfg: Model, published: Path | None = None) -> dict[str, Any] | None:
    """Return a base model's config.json from its node's `published` folder, else what `model.config` says of it, else
    from its path in `cfg`; None if the hub cannot be reached, or for a GGUF file until it is published."""
    if published and (published / "config.json").exists():
        return model_shape.read_config(published)
    if cfg.random_init:
        return cfg.random_init.shape
    # else a group's, for its own path
    if cfg.config and cfg.config.get("_name_or_path", cfg.path) == cfg.path:
        return cfg.config
    if (local := locate(str(cfg.path), cfg.key)) is None:
        return hub_config(str(cfg.path), cfg.revision)
    return model_shape.read_config(local) if local.is_dir() else None


def hub_config(repo: str, revision: str | None) -> dict[str, Any] | None:
    """Return a hub model's config.json, downloaded or from the cache; None if it is in neither."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return model_shape.read_config(
            Path(hf_hub_download(repo, "config.json", revision=revision)).parent
        )
    except (LocalEntryNotFoundError, HfHubHTTPError):
        return None
