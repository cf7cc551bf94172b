"""The lists of runs: `outputs/index.html` has all of them, and the page of a sweep its jobs."""

import json
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from stages.pages.environment import environment
from stages.store import safe_files
from stages.store.sealed_json import read_note, require_keys, write_note

PAGES, INDEX = "pages", "index.html"
# the links to the list of runs, from a report in its node and from a page in `pages/`
LINKS_TO_INDEX = ("../../index.html", "../index.html")
ENTRY = ("page", "recipe", "command", "started", "sentence", "running", "sweep", "job")
SWEEP = ("sweep", "command", "ended")


def write_entry(root: Path, file: Path, entry: dict[str, Any]) -> None:
    """Note a run beside its page, and write the lists that have it."""
    write_note(file.with_suffix(".json"), entry)
    entries = runs(root)
    write_list(root / INDEX, entries, up="")
    if entry["sweep"]:
        write_sweep(root, entry["sweep"], entries)


def link_from_root(page: bytes) -> bytes:
    """Return a page with its link to the list of runs as it is for a copy in the store's root."""
    for link in LINKS_TO_INDEX:
        page = page.replace(f'href="{link}"'.encode(), f'href="{INDEX}"'.encode())
    return page


def note_sweep(root: Path, sweep: str, command: str, ended: bool) -> Path:
    """Note a sweep, and return the file of its page."""
    values = {"sweep": sweep, "command": command, "ended": ended}
    safe_files.write_in_folder(root / PAGES / f"{sweep}.sweep", json.dumps(values))
    return write_sweep(root, sweep, runs(root))


def write_sweep(root: Path, sweep: str, entries: list[dict[str, Any]]) -> Path:
    """Write the page of a sweep: its jobs that have begun, in their order, each once."""
    file = root / PAGES / f"{sweep}.html"
    note = read_note(file.with_suffix(".sweep"), require_keys(*SWEEP))
    if note:
        begun = {run["job"]: run for run in reversed(entries) if run["sweep"] == sweep}
        listed = [*begun.values()]
        write_list(file, listed, up="../", command=note["command"], running=not note["ended"])
    return file


def runs(root: Path) -> list[dict[str, Any]]:
    """Return the entries of all runs whose pages are there, the last one first."""
    notes = (read_note(each, validate_entry) for each in (root / PAGES).glob("*.json"))
    entries = [note for note in notes if note and (root / note["page"]).exists()]
    entries.sort(key=lambda run: -run["started"])
    for run in entries:
        run["date"] = f"{datetime.fromtimestamp(run['started']):%Y-%m-%d %H:%M}"
    return entries


def validate_entry(value: Any) -> dict[str, Any]:
    """Return a parsed entry unchanged. Raise an error of WRONG_SHAPE if it lacks a key, or if its page is not a file of
    the store."""
    entry = require_keys(*ENTRY)(value)
    place = PurePosixPath(entry["page"])
    if place.is_absolute() or ".." in place.parts or ":" in entry["page"]:
        raise ValueError(f"page: {entry['page']!r:.100} is not a file of the store")
    return entry | {"started": float(entry["started"])}


def write_list(file: Path, entries: list[dict[str, Any]], up: str, **more: Any) -> None:
    """Write a list of runs; `up` leads from the file to the store's root."""
    page = (
        environment()
        .get_template("index.html.jinja")
        .render({"runs": entries, "up": up, "command": "", "running": False} | more)
    )
    safe_files.write(file, page)
