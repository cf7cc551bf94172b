"""The source of each stage: the parts of this package that decide the stage's results. Some stages may be edited.

`stage_sources.json` beside this module records the digest of each stage's source. A stage whose source has another
digest is edited. Its nodes have other fingerprints, so no node of the recorded source is reused for it.

A stage's source is its own file, what this imports, and the code that runs stages. The record has for each of these
files a digest of its bytes, and its parts. So a command parses only the files that differ from the record."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from stages.config.errors import UserError
from stages.config.installation import PACKAGE
from stages.config.stage_table import STAGES
from stages.store.source_parts import Part, parse, short_digest, text_digest

RECORD = "store/stage_sources.json"
# Source files inside the package. Hidden files and the backups of editors have other names.
SOURCE_FILE = re.compile(r"(\w+/)*(\w+\.py|\w+(\.\w+)?\.(yaml|jinja|html|jsonl))")
# Folders of a wheel's package that hold no source. Settings are in the nodes of the graph.
NO_SOURCE = ("conf", "recipes", "docs")
# The code that calls `run` of every stage: in this process, in a worker, in a task of a cluster. What it imports from
# other packages than RUNNING does not count, since it serves all stages.
RUNS_STAGES = (
    "pipeline/build.py:build_node",
    "launch/processes.py:train_in_workers",
    "launch/processes.py:let_workers_divide",
    "launch/agent.py:main",
    "launch/worker.py:main",
)
RUNNING = ("launch/", "hardware/")
CLUSTERS = "extras/*/cluster.py"
# texts of the report in the folder of an extra
GLOSSARY, SECTIONS = "glossary.yaml", "section_*.jinja"
# Files that a file reads, imports or starts by their name or folder. No import statement names them.
LOADED_BY_NAME = {
    "answer.py": "samplers/*.py",
    "data.py": "extras/*/prompts.py",
    "evaluation/extra_sections.py": "extras/*/results.py",
    "formats/phrased.py": "formats/tasks/*.yaml",
    "labelers/making.py": "labelers/*.py",
    "labelers/labeler.py": "extras/*/labeler.py",
    "launch/cluster.py": CLUSTERS,
    "models/chat_templates.py": "models/templates/*.jinja",
    "models/model_card.py": "models/model_card.md.jinja",
    "pages/environment.py": "pages/*.jinja",
    "pages/glossary.py": f"extras/*/{GLOSSARY}",
    "pages/extra_sections.py": "extras/*/page.py",
    "report.py": f"extras/*/{SECTIONS}",
    "samplers/completions.py": "samplers/*.py",
    "samplers/vllm.py": "samplers/vllm_driver.py",
    "tasks/constraint.py": "tasks/constraints/*.py",
    "tasks/generator.py": "tasks/families/*.py",
}
# Classes of settings with what their types do not name: the table of classes of which one takes their place, and what a
# field of any type may hold
OPTIONS = {
    "config/blocks/data.py:Data": ("config/blocks/data.py:DATA",),
    "config/blocks/evaluation.py:Judged": ("config/blocks/evaluation.py:JUDGED",),
    "config/blocks/labels.py:Label": ("config/blocks/labels.py:LABELS",),
    "config/blocks/models.py:Template": ("config/blocks/models.py:TEMPLATES",),
    "config/blocks/sampling.py:Sample": ("config/blocks/sampling.py:SAMPLES",),
    "config/blocks/training.py:FirstModel": ("config/blocks/training.py:SFTS",),
}
EXTRAS = "extras/"  # a folder that may be removed
NOTHING_RECORDED: Mapping[str, Any] = {"stages": {}, "files": {}}
MISSING = Part("missing")
MOST_NAMED = 5  # files in a line

Signatures = dict[str, tuple[int, int]]  # the size and modification time of each source file


@dataclass(frozen=True)
class EditedSource:
    """The source of a stage that differs from the recorded one: its digest, and the files that differ."""

    digest: str
    files: list[str]

    def __str__(self) -> str:
        named = ", ".join(self.files[:MOST_NAMED])
        further = len(self.files) - MOST_NAMED
        return f"{named} and {further} more" if further > 0 else named


class Sources:
    """The source files of a package's folder at one time, and the package's record. Without a `record`, the folder's own
    is read."""

    def __init__(self, folder: Path = PACKAGE, record: Mapping[str, Any] | None = None):
        self.folder = folder
        self.record = read_record(folder) if record is None else record
        self.recorded_files: Mapping[str, Any] = self.record["files"]
        self.signatures = signatures(folder)
        # recorded files that are missing are known, too
        self.known_files = {*self.signatures, *self.recorded_files}
        self.changed = {file for file in self.known_files if self.differs(file)}
        self._recorded = dict[
            str, dict[str, Part]
        ]()  # the parts of files, as recorded and as parsed now
        self._parsed = dict[str, dict[str, Part]]()
        self._digests = dict[str, str]()  # of stages

    def differs(self, file: str) -> bool:
        """Return whether a file differs from the record. Of other files than the recorded ones, only those do that are
        loaded by name: no other file of a stage's source uses the rest."""
        if file not in self.recorded_files:
            return is_loaded_by_name(file)
        try:
            return text_digest(self.read(file)) != self.recorded_files[file]["bytes"]
        except UserError:  # raised again if a stage of the run needs the file
            return True

    def read(self, file: str) -> bytes:
        """Return the content of a source file. Raise UserError if it cannot be read."""
        path = self.folder / file
        try:
            return path.read_bytes()
        except OSError as error:
            problem = f"{error.strerror}, so nothing tells what it computes"
            raise UserError(f"{path}: {problem}. Restore it, or install again.") from error

    def edited(self, stage: str) -> EditedSource | None:
        """Return the source of a stage if it is edited, or None."""
        digest = self.digest(stage)
        if digest == self.record["stages"].get(stage, {}).get("source"):
            return None
        differing = set[str]()
        for ref, part in self.source(stage).items():
            file = file_of(ref)
            is_recorded = file in self.recorded_files and file not in self.changed
            if part != self.recorded_part(ref) and not is_recorded:
                differing.add(file)
        return EditedSource(digest, sorted(differing) or [STAGES[stage].file])

    def digest(self, stage: str) -> str:
        """Return the digest of a stage's source."""
        if not self.changed and stage in self.record["stages"]:
            recorded: str = self.record["stages"][stage]["source"]
            return recorded
        if stage not in self._digests:
            edited_in_extras = {
                ref: part
                for ref, part in self.source_in_extras(stage).items()
                if part != self.recorded_part(ref)
            }
            self._digests[stage] = digest_of(self.core_source(stage) | edited_in_extras)
        return self._digests[stage]

    def source(self, stage: str) -> dict[str, Part]:
        """Return the parts of a stage's source by name. Raise UserError if one is missing or cannot be parsed."""
        return self.core_source(stage) | self.source_in_extras(stage)

    def core_source(self, stage: str) -> dict[str, Part]:
        """Return the parts of a stage's source that are there without any extra, except the stage's own."""
        record = STAGES[stage]
        own_extra = f"{EXTRAS}{record.extra}/" if record.extra else None
        return self.parts_reached([record.file, *RUNS_STAGES], own_extra)

    def source_in_extras(self, stage: str) -> dict[str, Part]:
        """Return the parts of a stage's source that extras add. They count where they differ from the record: to remove
        an extra edits no stage."""
        core = self.core_source(stage)
        reached = self.parts_reached([STAGES[stage].file, *RUNS_STAGES], EXTRAS)
        return {ref: part for ref, part in reached.items() if ref not in core}

    def parts_reached(self, refs: list[str], extras: str | None) -> dict[str, Part]:
        """Return the parts with these names, and all that they use. Of extras only those in the folder `extras`."""
        parts = dict[str, Part]()
        waiting = [*refs]
        while waiting:
            ref = waiting.pop()
            is_left_out = ref.startswith(EXTRAS) and not (extras and ref.startswith(extras))
            if ref not in parts and not is_left_out:
                parts[ref] = self.part(ref)
                waiting += self.parts_used(ref, parts[ref])
        return parts

    def parts_used(self, ref: str, part: Part) -> Iterator[str]:
        """Yield the names of the parts that a part uses: by its code, by its packages, and by the files that it loads."""
        file = file_of(ref)
        only_running = file.startswith(("launch/", "pipeline/")) or fnmatchcase(file, CLUSTERS)
        for used in part.refs:
            if not only_running or used.startswith(RUNNING):
                yield used
        folders = file.split("/")[:-1]
        for depth in range(len(folders) + 1):
            package = "/".join([*folders[:depth], "__init__.py"])
            if package in self.known_files:  # Python runs it before the file
                yield package
        yield from OPTIONS.get(ref, ())
        if file.startswith(EXTRAS) and len(folders) > 1:
            folder = "/".join(folders[:2])
            yield from (known for known in self.signatures if is_text_of(folder, known))
        if file in LOADED_BY_NAME:
            for known in self.known_files:
                is_removed_extra = known.startswith(EXTRAS) and known not in self.signatures
                if fnmatchcase(known, LOADED_BY_NAME[file]) and not is_removed_extra:
                    yield known

    def part(self, ref: str) -> Part:
        """Return a part: of a file that does not differ from the record the recorded part, if there is any."""
        file, _, name = ref.partition(":")
        recorded = self.recorded_part(ref)
        if recorded and file not in self.changed:
            return recorded
        if file not in self._parsed:
            self._parsed[file] = self.parse(file)
        return self._parsed[file].get(name, MISSING)

    def recorded_part(self, ref: str) -> Part | None:
        """Return a part as it is recorded, or None."""
        file, _, name = ref.partition(":")
        if file not in self._recorded:
            lines = self.recorded_files[file]["parts"] if file in self.recorded_files else {}
            self._recorded[file] = {name: part_in_line(line) for name, line in lines.items()}
        return self._recorded[file].get(name)

    def parse(self, file: str) -> dict[str, Part]:
        """Return the parts of a file by name. Raise UserError if it is missing or cannot be parsed. A missing file that is
        loaded by name has none: only what names it needs it."""
        if file not in self.signatures and is_loaded_by_name(file):
            return {}
        try:
            return parse(file, self.read(file), self.known_files)
        except (SyntaxError, ValueError, RecursionError, yaml.YAMLError) as error:
            problem = " ".join(str(error).split())
            raise UserError(
                f"{self.folder / file}: {problem}. Correct it, or install again."
            ) from error

    def as_record(self, versions: Mapping[str, int]) -> dict[str, Any]:
        """Return the record of this folder. `versions`: the version of each stage."""
        stages = dict[str, Any]()
        parts = dict[str, Part]()
        for stage, version in versions.items():
            stages[stage] = {"version": version, "source": digest_of(self.core_source(stage))}
            parts |= self.source(stage)
        files = dict[str, Any]()
        for ref, part in sorted(parts.items()):
            file, _, name = ref.partition(":")
            entry = files.setdefault(file, {"bytes": text_digest(self.read(file)), "parts": {}})
            entry["parts"][name] = line_of_part(part)
        return {"stages": stages, "files": files}


def signatures(folder: Path) -> Signatures:
    """Return the signature of each source file in a package's folder, by its path inside."""
    by_file = Signatures()
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        if inside == Path():
            folders[:] = [name for name in folders if name not in NO_SOURCE]
        for name in names:
            file = (inside / name).as_posix()
            path = folder / file
            if SOURCE_FILE.fullmatch(file) and path.is_file():
                status = path.stat()
                by_file[file] = (status.st_size, status.st_mtime_ns)
    return by_file


def read_record(folder: Path) -> Mapping[str, Any]:
    """Return the record of a package. Raise UserError if it is missing or damaged."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digests = [stage["source"] for stage in record["stages"].values()]
        for file in record["files"].values():
            digests += [file["bytes"], *file["parts"].values()]
        "".join(digests)  # they are texts
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read, so nothing tells if a stage is edited. Install again, or in a checkout type: "
            "python -m tests.pipeline.test_versions"
        ) from error
    return record  # type: ignore[no-any-return]  # a dict, as the keys above show


def digest_of(parts: Mapping[str, Part]) -> str:
    """Return the digest of parts by name."""
    digests = [(ref, part.digest) for ref, part in sorted(parts.items())]
    return short_digest(json.dumps(digests))


def line_of_part(part: Part) -> str:
    """Return the line of a record for a part."""
    return " ".join([part.digest, *part.refs])


def part_in_line(line: str) -> Part:
    """Return the part in a line of a record."""
    digest, *refs = line.split()
    return Part(digest, tuple(refs))


def file_of(ref: str) -> str:
    """Return the file of a part."""
    return ref.partition(":")[0]


def is_text_of(folder: str, file: str) -> bool:
    """Return whether a file is a text of an extra's folder: neither code, nor settings, nor texts of the report."""
    no_texts = ("*.py", "conf/*", "recipes/*", GLOSSARY, SECTIONS)
    is_inside = file.startswith(f"{folder}/")
    return is_inside and not any(fnmatchcase(file, f"{folder}/{name}") for name in no_texts)


def is_loaded_by_name(file: str) -> bool:
    """Return whether a file may be loaded by its name or folder."""
    return any(fnmatchcase(file, pattern) for pattern in LOADED_BY_NAME.values())


@cache
def of_process() -> Sources:
    """Return the sources as they were when this process first asked. Python imports a file once, so later edits are for
    later commands."""
    return Sources()


def require_source(stage: str, digest: str) -> None:
    """Raise UserError unless a stage's source on this machine has this digest now."""
    sources = of_process()
    if signatures(sources.folder) != sources.signatures:
        sources = Sources(sources.folder)
    if sources.digest(stage) != digest:
        edited = sources.edited(stage)
        files = f" ({edited})" if edited else ""
        raise UserError(
            f"{stage}: its source{files} is not the one with which the command started. Type the same command again: "
            "it uses the new source."
        )
