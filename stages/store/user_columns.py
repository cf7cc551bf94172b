"""The user's columns that nothing else reads: `columns.parquet` beside the table of the node that reads the file.

A column is kept if it holds numbers or at most 50 different values, none longer than 100 characters. The tables of
records do not have these columns, and a node's digest does not count them. What needs the columns joins them by prompt."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config.stage_table import POLICY_STAGES
from stages.store.manifest import Manifest, manifest_of
from stages.store.records import PACKED, ROWS_PER_GROUP, open_table
from stages.store.workspace import COLUMNS

MOST_VALUES = 50
MOST_CHARACTERS = 100
ROW_ID = "id"
TYPES = {
    frozenset({str}): pa.string(),
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
}
INTEGERS = range(-(2**63), 2**63)  # of Parquet
# metadata of a column of JSON texts, whose values have several types
AS_JSON = {b"values": b"json"}
# stages whose nodes may read a file, with the setting that tells whether one does
READERS: dict[str, dict[str, str]] = {
    "source": {},
    "label": {"labeler": "dataset"},
    "sample": {"sampler": "file"},
}
# stages that make models: a model's own lineage has other rows
MODELS = ("base", "sft", "reward", *POLICY_STAGES)


class KeptColumn:
    """The values of a column as JSON texts, about 15 bytes each."""

    def __init__(self) -> None:
        self.parts = list[pa.Array]()
        self.waiting = list[str | None]()
        self.rows = 0
        self.distinct = set[str]()
        self.types = set[type]()

    def add(self, row: int, value: Any) -> bool:
        """Add the value of a row, and return whether the column is still kept. Rows that were skipped have no value."""
        try:
            text = json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):  # keys of other types, nested too deeply
            return False
        text = text.encode(errors="replace").decode()  # a file may hold half a surrogate pair
        shown = value if isinstance(value, str) else text
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        self.types.add(type(value))
        if len(self.distinct) <= MOST_VALUES:
            self.distinct.add(text)
        has_few_values = len(self.distinct) <= MOST_VALUES
        has_numbers = is_number and self.types <= {int, float}
        if len(shown) > MOST_CHARACTERS or not (has_few_values or has_numbers):
            return False
        if is_number and isinstance(value, int) and value not in INTEGERS:
            return False
        self.fill(row)
        self.append(text)
        return True

    def fill(self, rows: int) -> None:
        """Add rows without a value, up to so many rows."""
        while self.rows < rows:
            self.append(None)

    def append(self, text: str | None) -> None:
        self.waiting.append(text)
        self.rows += 1
        if len(self.waiting) == ROWS_PER_GROUP:
            self.parts.append(pa.array(self.waiting, pa.string()))
            self.waiting = []

    def part(self, index: int) -> pa.Array:
        """Return the values of one group of rows, with their type."""
        texts = self.waiting
        if index < len(self.parts):
            texts = self.parts[index].to_pylist()
        kind = TYPES.get(frozenset(self.types))
        if kind is None:
            return pa.array(texts, pa.string())
        return pa.array([None if text is None else json.loads(text) for text in texts], kind)

    def first_value(self) -> Any:
        """Return the value of the first row that has one."""
        for part in (*self.parts, pa.array(self.waiting, pa.string())):
            for text in part.drop_null().to_pylist():
                return json.loads(text)
        return None

    def field(self, name: str) -> pa.Field:
        kind = TYPES.get(frozenset(self.types))
        if kind is None:
            return pa.field(name, pa.string(), metadata=AS_JSON)
        return pa.field(name, kind)


class KeptColumns:
    """The columns of a file's rows that are kept, read row by row."""

    def __init__(self) -> None:
        self.rows = 0
        self.columns = dict[str, KeptColumn]()
        self.left_out = {ROW_ID}

    def add(self, values: Mapping[str, Any]) -> None:
        """Add a row: its values by column, without empty ones."""
        for name in values.keys() - self.left_out:
            column = self.columns.setdefault(name, KeptColumn())
            if not column.add(self.rows, values[name]):
                self.left_out.add(name)
                del self.columns[name]
        self.rows += 1

    def first_values(self) -> dict[str, Any]:
        """Return the first value of each column."""
        return {name: column.first_value() for name, column in self.columns.items()}

    def save(self, file: Path, ids: Iterable[str]) -> None:
        """Write the columns of all rows, which have these ids. Without a column there are no rows in the file."""
        columns = dict(sorted(self.columns.items()))
        for column in columns.values():
            column.fill(self.rows)
        schema = pa.schema(
            [(ROW_ID, pa.string()), *(column.field(name) for name, column in columns.items())]
        )
        draft = file.with_suffix(".draft")
        waiting = iter(ids)
        groups = -(-self.rows // ROWS_PER_GROUP) if columns else 0
        with pq.ParquetWriter(draft, schema, **PACKED) as writer:
            for index in range(groups):
                group_ids = pa.array(islice(waiting, ROWS_PER_GROUP), pa.string())
                values = [column.part(index) for column in columns.values()]
                writer.write_table(pa.Table.from_arrays([group_ids, *values], schema=schema))
        draft.replace(file)


@dataclass
class UserColumns:
    """The user's columns of some prompts. `others`: the values of prompts that are in no file. `lacking`: the nodes that
    read a file and have no `columns.parquet`, as they were built before columns were kept."""

    names: list[str] = field(default_factory=list)
    by_prompt: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    lacking: list[Path] = field(default_factory=list)

    def of(self, prompt_id: str) -> dict[str, Any]:
        """Return the values of a prompt by column: None where its row has none."""
        return {**dict.fromkeys(self.names), **self.by_prompt.get(prompt_id, self.others)}

    @property
    def lacking_message(self) -> str:
        """Return why columns are missing, and how they are got; '' if no node lacks them."""
        if not self.lacking:
            return ""
        stages = sorted({node.parent.name for node in self.lacking})
        nodes = ", ".join(f"{node.parent.name} {node.name}" for node in self.lacking)
        commands = " and ".join(f"rebuild={stage}" for stage in stages)
        return f"{nodes} does not have the columns of its file. Type the command with {commands}."


def read_user_columns(nodes: Iterable[Path], prompts: Collection[str]) -> UserColumns:
    """Return the columns of these prompts, from the files that the nodes and their inputs read. Of several rows with a
    prompt the first counts."""
    columns = UserColumns()
    for node in file_readers(nodes):
        file = node / COLUMNS
        if not file.exists():
            columns.lacking.append(node)
            continue
        with open_table(file) as table:
            schema = table.schema_arrow
            columns.names += [name for name in schema.names if name not in columns.names]
            encoded = encoded_columns(schema)
            for batch in table.iter_batches(ROWS_PER_GROUP):
                for row in batch.to_pylist():
                    prompt = row.pop(ROW_ID)
                    if prompt in prompts and prompt not in columns.by_prompt:
                        columns.by_prompt[prompt] = decode(row, encoded)
    columns.names = [name for name in columns.names if name != ROW_ID]
    return columns


def read_first_row(node: Path) -> dict[str, Any]:
    """Return a value of each column of the file that a node has read, from its first rows."""
    with open_table(node / COLUMNS) as table:
        schema = table.schema_arrow
        encoded = encoded_columns(schema)
        values = dict[str, Any].fromkeys(schema.names)
        for batch in islice(table.iter_batches(ROWS_PER_GROUP), 1):
            for row in batch.to_pylist():
                for name, value in decode(row, encoded).items():
                    if values[name] is None:
                        values[name] = value
    values.pop(ROW_ID)
    return values


def encoded_columns(schema: pa.Schema) -> set[str]:
    """Return the columns whose values are JSON texts."""
    return {name for name in schema.names if schema.field(name).metadata == AS_JSON}


def decode(row: Mapping[str, Any], encoded: Collection[str]) -> dict[str, Any]:
    """Return the values of a row, parsed if they are JSON texts."""
    values = dict(row)
    for name in encoded:
        if row[name] is not None:
            values[name] = json.loads(row[name])
    return values


def file_readers(nodes: Iterable[Path]) -> Iterator[Path]:
    """Yield the folders of nodes that read a file, among these and their inputs, in the order of the inputs."""
    seen = set[Path]()
    waiting = [*nodes]
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if not node.exists():  # its name tells the stage
            if node.parent.name == "source":
                yield node
            continue
        manifest = manifest_of(node)
        if reads_file(manifest):
            yield node
        for entry in manifest["inputs"].values():
            if entry["stage"] not in MODELS:
                waiting.append(node.parents[1] / entry["stage"] / entry["fingerprint"])


def reads_file(manifest: Manifest) -> bool:
    """Return whether a node reads a file of the user's."""
    settings = READERS.get(manifest["stage"])
    if settings is None:
        return False
    return settings.items() <= manifest["config"].items()
