"""Read the folders that libraries of synthetic data write: their rows, with the model that wrote each.

A folder is recognised by the files beside its rows: `builder_config.json` of Data Designer, the requests of curator,
`distiset_configs` of distilabel. Requests that failed are unusable rows, with the reason that the library kept."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.errors import UserError
from stages.config.override_text import override
from stages.formats.readers.row import BadRow, Row

Read = Callable[[Path], Iterator[Row]]
Readers = dict[Path, Callable[[], Iterator[Row]]]
# the column with the model of a row, or with the models by column
MODEL = "generation_model"
DESIGN, DESIGNED_ROWS = "builder_config.json", ("parquet-files", "data")  # here, and on the hub
REQUESTS, RESPONSES, FAILED = "requests_0.jsonl", "responses_*.jsonl", "failed_requests.jsonl"
ROW_NUMBER = "__original_row_idx"
# the columns of curator's table without a parse function
UNPARSED = {"response", ROW_NUMBER}
CARDS, ARTIFACTS = "distiset_configs", "artifacts"
MOST_REASON = 300  # characters


def dataset_folder(folder: Path, key: str) -> Path:
    """Return the only data set in a folder of distilabel's steps or of curator's runs; any other folder itself.
    Raise UserError for several: the rows of one are often made from those of another."""
    parts = list[Path]()
    if (folder / CARDS).is_dir():
        names = (CARDS, ARTIFACTS)
        parts = [part for part in folder.glob("[!.]*") if part.is_dir() and part.name not in names]
    elif (folder / "metadata.db").is_file():
        parts = [file.parent for file in folder.glob(f"*/{REQUESTS}")]
    return only_one(parts, folder, key) if parts else folder


def only_one(parts: list[Path], folder: Path, key: str) -> Path:
    if len(parts) > 1:
        ways = " or ".join(override(key, str(part)) for part in sorted(parts))
        raise UserError(
            f"{key}={folder}: holds {len(parts)} data sets. Type {ways} to read one of them."
        )
    return parts[0]


def synthetic_readers(folder: Path, key: str, read: Read) -> Readers:
    """Return a reader for each file with rows in a folder of Data Designer or curator; {} for any other folder.
    `read` reads a file as it is."""
    designed = [file for part in DESIGNED_ROWS for file in sorted(folder.glob(f"{part}/*.parquet"))]
    if designed and (folder / DESIGN).is_file():
        models = read_models(folder / DESIGN, key, designed[0].parent)
        return {file: partial(with_model, read, file, models) for file in designed}
    if not (folder / REQUESTS).is_file():
        return {}
    responses = sorted(folder.glob(RESPONSES))
    parsed = [*folder.glob("*.arrow")]
    table = only_one(parsed, folder, key) if parsed else None
    first = next(read(table), None) if table else None
    if not table or not first or {*(first.value or ())} <= UNPARSED:
        return {file: partial(exchanges, read, file) for file in responses}
    answered = (row for file in responses for row in exchanges(read, file) if not row.error)
    model = next((row.value[MODEL] for row in answered), None)
    readers: Readers = {table: partial(with_model, read, table, model)}
    if (failed := folder / FAILED).is_file():
        readers[failed] = partial(failed_rows, read, failed, responses)
    return readers


def read_models(config: Path, key: str, rows: Path) -> dict[str, str]:
    """Return the model of each column that one wrote, from Data Designer's configuration. `rows`: their folder."""
    try:
        design = json.loads(config.read_text(encoding="utf-8"))["data_designer"]
        models = {each["alias"]: str(each["model"]) for each in design["model_configs"] or []}
        aliases = {each["name"]: each.get("model_alias") for each in design["columns"]}
        return {name: models[alias] for name, alias in aliases.items() if alias in models}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        way = f"Type {override(key, str(rows))} to read the rows without their models"
        raise UserError(
            f"{config}: does not name the columns' models ({error!r}). {way}."
        ) from error


def with_model(read: Read, file: Path, model: Any) -> Iterator[Row]:
    """Yield the rows of a file with their model, or with the models of their columns."""
    for row in read(file):
        if isinstance(row.value, dict):
            row.value = {MODEL: model, **row.value}
            row.value.pop(ROW_NUMBER, None)
        yield row


def exchanges(read: Read, responses: Path) -> Iterator[Row]:
    """Yield curator's requests with their responses as conversations."""
    for row in read(responses):
        error = row.error or response_error(row.value)
        if error:
            yield replace(row, error=error)
            continue
        request, answer = row.value["generic_request"], row.value["response_message"]
        turns = [*request["messages"], {"role": "assistant", "content": answer}]
        yield replace(row, value={"messages": turns, MODEL: request["model"]})


def response_error(response: Any) -> BadRow | None:
    """Return the error of one of curator's responses that failed; None for any other."""
    request = response.get("generic_request") if isinstance(response, dict) else None
    if not isinstance(request, dict) or not {"messages", "model"} <= request.keys():
        return BadRow("generic_request", "is not a request with messages and a model")
    if errors := response.get("response_errors"):
        return BadRow("response_errors", "; ".join(map(str, errors))[:MOST_REASON])
    return None if response.get("response_message") else BadRow("response_message", "is empty")


def failed_rows(read: Read, failed: Path, responses: list[Path]) -> Iterator[Row]:
    """Yield curator's requests that became no row, each with the reason."""
    errors = dict[Any, BadRow]()
    for file in responses:
        for row in read(file):
            if not row.error and (error := response_error(row.value)):
                errors[row_number(row.value, "generic_request")] = error
    unparsed = BadRow("response", "the parse function took no row from it")
    for row in read(failed):
        yield replace(row, error=row.error or errors.get(row_number(row.value), unparsed))


def row_number(value: Any, *path: str) -> Any:
    """Return the number of the row that a request was made from; None if it has none."""
    for key in (*path, "original_row_idx"):
        value = value.get(key) if isinstance(value, dict) else None
    return value
