"""The licence that a base model states, which also binds the models that are trained from it.

Known licences have duties about names and notices. The licence's files go with every published model, and the model's
card states the licence and these duties."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.config.errors import visible
from stages.config.installation import read_beside
from stages.store import safe_files
from stages.store.licences import CARD, card_header

KEYS = ("license", "license_name", "license_link")  # in the header of a card, as the hub names them
FILE = re.compile(r"(licen[cs]e|notice|use_policy)[^.]*(\.txt|\.md)?", re.IGNORECASE)
NOTICE = re.compile(r"notice\b", re.IGNORECASE)
# by licence: `begins` the name of a model, `shows` a sentence, `notice`: the content of the file NOTICE
DUTIES: dict[str, dict[str, str]] = read_beside(__file__)


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
    """Write a base model's licence into its published folder: a card that states it, the files of the licence if
    `source` is a folder, and the NOTICE that the licence demands."""
    copy_licence_files(source, model)
    if licence:
        safe_files.write(model / CARD, f"---\n{yaml.safe_dump(licence)}---\n")
    notice = duties(licence).get("notice")
    if notice and not any(NOTICE.match(file.name) for file in licence_files(model)):
        safe_files.write(model / "NOTICE", notice + "\n")


def licence_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.is_file() and FILE.fullmatch(file.name))


def copy_licence_files(source: Path, model: Path) -> None:
    for file in licence_files(source):
        shutil.copyfile(file, model / file.name)


def duties(licence: Mapping[str, Any]) -> dict[str, str]:
    """Return the duties of a licence about names and notices; {} if none is known."""
    names = [plain(name) for name in licence_names(licence)]
    for name, known in DUTIES.items():
        if plain(name) in names:
            return known
    return {}


def licence_names(licence: Mapping[str, Any]) -> list[str]:
    names = [licence.get("license_name")]
    stated = licence.get("license")
    names += stated if isinstance(stated, list) else [stated]
    return [name for name in names if isinstance(name, str) and name != "other"]


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def licence_message(licence: Mapping[str, Any]) -> str:
    """Return the line on the licence of a model's base and on its duties; '' if it states none."""
    if not licence:
        return ""
    name = ", ".join(licence_names(licence)) or "other"
    if "license_link" in licence:
        name += f" ({licence['license_link']})"
    sentences = [f"The licence of the base, {name}, also binds this model."]
    known = duties(licence)
    if "begins" in known:
        sentences.append(f'Its name must begin with "{known["begins"]}".')
    if "shows" in known:
        sentences.append(f'Its page or documentation must show "{known["shows"]}".')
    if "notice" in known:
        sentences.append("The licence and the file NOTICE must go with every copy.")
    return visible(" ".join(sentences))
