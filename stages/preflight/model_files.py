"""Folders and files of models, read as far as their heads: no weights are loaded."""

import json
import struct
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.hardware import model_shape
from stages.models import safe_folder
from stages.store.node import Node
from stages.store.source_files import commit_of, locate
from stages.store.store import Store

SCORES = "ForSequenceClassification"  # how transformers calls the classes whose head gives scores
HEADS = ("score.", "classifier.", "classification_head.")  # and what their heads are called in the weights
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
LONGEST_HEAD = 1 << 27  # bytes of a header of safetensors


def require_model(node: Node, store: Store) -> None:
    """Raise UserError where `base` cannot load what its path names."""
    cfg = node.config
    if not cfg.path:
        return
    key = f"{cfg.key}={cfg.path}"
    if (place := locate(cfg.path, cfg.key)) is None:
        commit_of(cfg.path, cfg.revision, "model", cfg.key)
    elif place.is_dir():
        require_folder(place, key)
    elif place.suffix != ".gguf" or not place.is_file():
        raise UserError(f"{key}: a single file must be a .gguf; for safetensors, name the folder.")
    else:
        try:
            model_shape.gguf(place)
        except (OSError, ValueError, LookupError, ArithmeticError, struct.error) as error:
            raise UserError(f"{key}: cannot be read as GGUF: {error}. Name a whole GGUF file.") from error


def require_reward_model(node: Node, store: Store) -> None:
    """Raise UserError where `label.reward_model.path` names no model with a head of one score, or one without a chat
    template."""
    cfg = node.config.reward_model
    if node.config.labeler != "reward_model" or node.config.own or not cfg.path:
        return
    setting = "label.reward_model.path"
    key = f"{setting}={cfg.path}"
    if (folder := locate(cfg.path, setting)) is None:
        commit_of(cfg.path, cfg.revision, "model", setting)
        return
    if not folder.is_dir():
        raise UserError(f"{key}: a reward model is a folder of safetensors, and this is a file. Name the folder.")
    config = require_folder(folder, key)
    classes = [str(name) for name in config.get("architectures") or []]
    tensors = {name for file in folder.glob("*.safetensors") for name in names_in(file, key)}
    if classes and not any(SCORES in name for name in classes) and not any(name.startswith(HEADS) for name in tensors):
        raise UserError(f"{key}: {classes[0]} gives no scores. A reward model is a …{SCORES} with one output.")
    if (outputs := outputs_of(config)) != 1:
        raise UserError(f"{key}: its config.json names {outputs} outputs, and a reward model has one.")
    if not (folder / "contract.json").exists() and not has_chat_template(folder):
        raise UserError(
            f"{key}: its tokenizer has no chat template, so nothing says how it reads a prompt with an answer. Save "
            "the one that it was trained with into tokenizer_config.json."
        )


def require_folder(folder: Path, key: str) -> dict[str, Any]:
    """Return the config.json of a model's folder.

    Raises:
        UserError: naming `key`, where the folder lacks a part of a model, or holds what is never read.
    """
    try:
        safe_folder.check(folder)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: the folder holds no config.json. Name the folder of a model.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{key}: {folder} holds no *.safetensors. Convert the weights to safetensors.")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{key}: the folder holds no tokenizer. Save the model's own beside it: tokenizer.json.")
    return model_shape.read(folder)


def names_in(file: Path, key: str) -> list[str]:
    """Return the names of the tensors in a file of safetensors, from its header."""
    try:
        with open(file, "rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            if length > min(LONGEST_HEAD, file.stat().st_size):
                raise ValueError("its header is longer than the file")
            return [*json.loads(content.read(length))]
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise UserError(f"{key}: {file.name} cannot be read as safetensors: {error}. Copy it again.") from error


def outputs_of(config: dict[str, Any]) -> Any:
    """Return how many outputs a classification model has by its config.json: transformers takes two where it says
    nothing."""
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else config.get("num_labels", 2)


def has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    file = folder / "tokenizer_config.json"
    config = safe_folder.read(file) if file.is_file() else {}
    return isinstance(config, dict) and bool(config.get("chat_template"))
