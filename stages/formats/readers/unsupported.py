"""Files that are no data that is read here, told by what they begin with, and how each is made such."""

import codecs
from pathlib import Path

from stages.config.errors import UserError

PICKLE = (
    "a pickle, which may run code and is never read. Where you trust it: "
    "pandas.DataFrame(pandas.read_pickle('{name}')).to_parquet('{stem}.parquet')"
)
FOREIGN = {
    b"PK\x03\x04": "a zip archive or a workbook. Unpack it, or save its table as CSV",
    b"SQLite format 3\0": "an SQLite database. Write a table of it as CSV: "
    "sqlite3 -header -csv {name} 'select * from TABLE' > {stem}.csv",
    b"\xd0\xcf\x11\xe0": "an old workbook. Save its table as CSV",
    b"\x93NUMPY": "a NumPy array. Write its texts as JSON lines",
    b"\x89HDF": "an HDF5 file. Write its table as Parquet: pandas.read_hdf('{name}').to_parquet('{stem}.parquet')",
    b"ORC": "an ORC file. Write it as Parquet: pandas.read_orc('{name}').to_parquet('{stem}.parquet')",
    b"Obj\x01": "an Avro file. Write its rows as JSON lines: fastavro {name} > {stem}.jsonl",
    b"%PDF": "a PDF. Write its text: pdftotext {name} {stem}.txt",
    **{b"\x80" + bytes([version]): PICKLE for version in range(2, 6)},
}
# Texts that are no rows, by what their names end with.
YAML = (
    'YAML. Write it as JSON lines: python -c "import json, yaml; '
    "[print(json.dumps(row, default=str)) for row in yaml.safe_load(open('{name}'))]\" > {stem}.jsonl"
)
PAGE = "a page. Write what it says as text or JSON lines"
LANGUAGES = {".yaml": YAML, ".yml": YAML, ".html": PAGE, ".htm": PAGE, ".xml": PAGE}
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}  # one begins as that of UTF-16 does
MARKS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
# Without a mark, two ASCII characters at the beginning tell: which of their bytes are zero (RFC 4627, section 3).
ZEROS: dict[tuple[int, ...], str] = {
    (0, 1, 1, 1): "UTF-32LE",
    (1, 1, 1, 0): "UTF-32BE",
    (0, 1, 0, 1): "UTF-16LE",
    (1, 0, 1, 0): "UTF-16BE",
}
TAR = slice(257, 262)  # where a tar archive says that it is one


def refuse_foreign(file: Path, start: bytes) -> None:
    """Raise UserError for a file that is not read here, by what it begins with."""
    told = next((told for magic, told in FOREIGN.items() if start.startswith(magic)), None)
    if start[TAR] == b"ustar":
        told = "a tar archive. Unpack it: tar -xf {name}"
    if told is None and start.lstrip()[:1] not in (b"{", b"["):
        told = next((told for suffix, told in LANGUAGES.items() if suffix in file.suffixes), None)
    if told:
        raise UserError(f"{file}: is {told.format(name=file.name, stem=file.stem)}.")


def refuse_encoding(file: Path, start: bytes) -> None:
    """Raise UserError for a text in another encoding than UTF-8, of which every character has two or four bytes."""
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if name := marked or ZEROS.get(tuple(int(byte == 0) for byte in start[:4])):
        converted = f"{file.stem}.utf8{file.suffix}"
        raise UserError(
            f"{file}: is {name.rstrip('LBE')}. Save it as UTF-8: iconv -f {name} -t UTF-8 {file.name} > {converted}"
        )
