"""Checks of model folders and files before anything is built. They read headers and config.json, and only of a reward
model its weights."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.config.blocks.models import Model
from stages.config.errors import UserError, begin_errors
from stages.config.override_text import override
from stages.hardware import model_shape
from stages.models import safe_folder
from stages.models.adapter_folder import read_adapter, read_config
from stages.store.node import Node
from stages.store.plugins import user_path
from stages.store.sealed_json import NODE
from stages.store.source_files import HUB_ID, locate, resolve_commit
from stages.store.store import Store

# in class names of transformers' models with a score head
SCORING_CLASS = "ForSequenceClassification"
SCORE_HEADS = ("score.", "classifier.", "classification_head.")  # prefixes of its tensors' names
# The name that our own adapters have for their base: STAGE/FINGERPRINT/model
NODE_PLACE = re.compile(rf"\w+/{NODE.pattern}/model")
SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")  # in a path of the hub's cache
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)


def require_base_model(node: Node, store: Store) -> None:
    """Raise UserError if a base model's path is neither a model of the hub, a complete folder nor a GGUF file, or if its
    adapter cannot be merged into it."""
    model = node.config
    require_adapter(model)
    if not model.path:
        return
    key = f"{model.key}={model.path}"
    local = locate(model.path, model.key)
    if local is None:
        resolve_commit(model.path, model.revision, "model", model.key)
    elif local.is_dir():
        require_model_folder(local, key)
    elif local.suffix == ".gguf":
        model_shape.refuse_pointer(local)
    else:
        raise UserError(f"{key}: a single file must be a .gguf. For safetensors, name the folder.")


def require_adapter(model: Model) -> None:
    """Raise UserError for an adapter that names another base model, or whose config and tensors contradict each other."""
    if model.adapter is None:
        if model.adapter_base is not None:
            raise UserError(
                f"model.adapter_base={model.adapter_base}: there is no adapter. Add model.adapter=FOLDER, or leave it out."
            )
        return
    folder = user_path(model.adapter)
    key = f"{model.adapter_key}={model.adapter}"
    with begin_errors(key):
        # only beside model.path a user can say that another base is meant
        if model.key == "model.path":
            require_own_base(model, str(read_config(folder).get("base_model_name_or_path") or ""))
        read_adapter(folder)


def require_own_base(model: Model, named: str) -> None:
    """Raise UserError if an adapter names another base model than `model.path`, unless `model.adapter_base` repeats it.
    An adapter may name none."""
    if model.adapter_base is not None and model.adapter_base != named:
        raise UserError(
            f"its base model is {named or 'not named'}, not model.adapter_base={model.adapter_base}. Leave that out."
        )
    if not named or model.adapter_base == named or is_same_model(named, str(model.path)):
        return
    base = f"model.path={model.path}" if model.path else "random weights"
    other = "model.path=FOLDER of that model"
    place = store_place(named, user_path(str(model.adapter)))
    if place or hub_id_of(named) or user_path(named).is_dir():
        other = override("model.path", str(place or named))
    raise UserError(
        f"it was trained on {named}, not on {base}. Type {other}, or if both are the same weights, "
        f"{override('model.adapter_base', named)}."
    )


def is_same_model(named: str, path: str) -> bool:
    """Return whether two names are of one model: the same place or id, an id and its snapshot in the hub's cache, an id
    and a folder of the same name, or a node's place in its store."""
    if named == path or user_path(named).resolve() == user_path(path).resolve():
        return True
    first, second = hub_id_of(named), hub_id_of(path)
    if first and second:
        return first == second
    is_copy = bool(first or second) and Path(named).name.lower() == Path(path).name.lower()
    is_node = (
        NODE_PLACE.fullmatch(named) and user_path(path).resolve().parts[-3:] == Path(named).parts
    )
    return bool(is_copy or is_node)


def hub_id_of(name: str) -> str:
    """Return the id, in lower case, of a hub model or of its snapshot in the hub's cache; '' for another path."""
    snapshot = SNAPSHOT.search(name)
    if snapshot:
        return f"{snapshot[1]}/{snapshot[2]}".lower()
    is_id = HUB_ID.fullmatch(name) and not user_path(name).exists()
    return name.lower() if is_id else ""


def store_place(named: str, adapter: Path) -> Path | None:
    """Return the node of a base model in the store that holds its adapter; None if this adapter is not from a store."""
    if not NODE_PLACE.fullmatch(named):
        return None
    places = [root / named for root in adapter.resolve().parents]
    return next((place for place in places if place.is_dir()), None)


def require_reward_model(node: Node, store: Store) -> None:
    """Raise UserError if `label.path` is not a model with one score output and a chat template."""
    label = node.config
    if not label.path:
        return
    path_key = f"{label.block}.path"
    key = f"{path_key}={label.path}"
    folder = locate(label.path, path_key)
    if folder is None:
        resolve_commit(label.path, label.revision, "model", path_key)
    elif folder.is_dir():
        require_score_and_template(folder, key)
        # the import takes a second
        from stages.models.loading import require_finite_files

        # the stage that loads this model comes hours later
        with begin_errors(key):
            require_finite_files(folder)
    else:
        raise UserError(f"{key}: a reward model is a folder of safetensors. Name the folder.")


def require_score_and_template(folder: Path, key: str) -> None:
    """Raise UserError if a model does not give one score, or has no chat template."""
    config = require_model_folder(folder, key)
    class_names = str(config.get("architectures") or "")
    has_score_head = any(
        name.startswith(SCORE_HEADS)
        for file in folder.glob("*.safetensors")
        for name in tensor_names(file, key)
    )
    if class_names and SCORING_CLASS not in class_names and not has_score_head:
        raise UserError(f"{key}: {class_names} gives no scores. Name a …{SCORING_CLASS} model.")
    output_names = config.get("id2label")
    outputs = config.get("num_labels", 2)  # 2 in transformers
    if isinstance(output_names, dict) and output_names:
        outputs = len(output_names)
    if outputs != 1:
        raise UserError(f"{key}: its config.json has {outputs} outputs. Name a model with one.")
    if not (folder / "contract.json").exists() and not has_chat_template(folder):
        raise UserError(f"{key}: its tokenizer has no chat template. Save that of its training.")


def require_model_folder(folder: Path, key: str) -> dict[str, Any]:
    """Return a model folder's config.json. Raise UserError, naming `key`, for a missing part or unsafe files."""
    with begin_errors(key):
        safe_folder.validate_folder(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: the folder has no config.json. Name the folder of a model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{key}: {folder} has no *.safetensors. Convert the weights to safetensors."
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
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
    settings = safe_folder.read_json(file) if file.is_file() else None
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def model_config(model: Model, published_folder: Path | None = None) -> dict[str, Any] | None:
    """Return a base model's config.json from the folder that its node published, else the shape of random weights or
    what `model.config` says of this path, else from the path; None if the hub has none, or for an unpublished GGUF file."""
    if published_folder and (published_folder / "config.json").exists():
        return model_shape.read_config(published_folder)
    if model.random_init:
        return model.random_init.config_json
    # a group's may be of another path
    if model.config and model.config.get("_name_or_path", model.path) == model.path:
        return model.config
    local = locate(str(model.path), model.key)
    if local is None:
        return hub_config(str(model.path), model.revision)
    is_gguf = not local.is_dir()
    return None if is_gguf else model_shape.read_config(local)


def hub_config(repo: str, revision: str | None) -> dict[str, Any] | None:
    """Return a hub model's config.json, downloaded or from the cache; None if it is in neither."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        file = hf_hub_download(repo, "config.json", revision=revision)
        return model_shape.read_config(Path(file).parent)
    except (LocalEntryNotFoundError, HfHubHTTPError):
        return None
