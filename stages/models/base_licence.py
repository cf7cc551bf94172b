"""The licence that a base model states, which also binds the models that are trained from it.

The licence's files go with every published model, and the model's card states the licence."""

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from stages.config.errors import visible
from stages.store import safe_files
from stages.store.licences import CARD, card_header

KEYS = ("license", "license_name", "license_link")  # in the header of a card, as the hub names them
FILE = re.compile(r"(licen[cs]e|notice|use_policy)[^.]*(\.txt|\.md)?", re.IGNORECASE)


def read_licence(folder: Path) -> dict[str, Any]:
    """Return the licence that a model folder states: in the header of its card, or else by a file of its own."""
    header = card_header(folder / CARD)
    if header.get("license"):
        return {key: header[key] for key in KEYS if header.get(key)}
    for file in licence_files(folder):
        if file.name.lower().startswith("licen"):
            return {"license": "other", "license_link": file.name}
    return {}


def publish_licence(licence: dict[str, Any], source: Path, model: Path) -> None:
    """Write a base model's licence into its published folder: a card that states it, and the files of the licence if
    `source` is a folder."""
    copy_licence_files(source, model)
    if licence:
        safe_files.write(model / CARD, f"---\n{yaml.safe_dump(licence)}---\n")


def licence_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.is_file() and FILE.fullmatch(file.name))


def copy_licence_files(source: Path, model: Path) -> None:
    for file in licence_files(source):
        shutil.copyfile(file, model / file.name)


def licence_message(licence: dict[str, Any]) -> str:
    """Return the line on the licence of a model's base; '' if it states none."""
    if not licence:
        return ""
    name = licence.get("license_name") or licence["license"]
    if isinstance(name, list):
        name = ", ".join(map(str, name))
    if "license_link" in licence:
        name = f"{name} ({licence['license_link']})"
    return visible(
        f"The licence of the base, {name}, also binds this model. It may demand a name, a notice or a sentence."
    )
