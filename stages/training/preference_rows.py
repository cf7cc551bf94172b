"""Tokenised pairs as columns: 4 bytes a token, in memory. As lists of Python's integers they take 36."""

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from stages.training.micro_batches import Row

GROUP = 250  # rows that wait as lists until they become columns
TOKENS = pa.list_(pa.int32())


class PreferenceRows:
    """Pairs to score, to train or to evaluate on, in the order in which they were added. `ids` are their names; what
    is called `…_ids` in a row are token ids, all else figures."""

    def __init__(self) -> None:
        self.ids = list[str]()
        self._waiting, self._tables = list[Row](), list[pa.Table]()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, pair: str, row: Row) -> None:
        self.ids.append(pair)
        self._waiting.append(row)
        if len(self._waiting) == GROUP:
            self._settle()

    def _settle(self) -> None:
        kinds = {name: TOKENS if name.endswith("_ids") else pa.float64() for name in self._waiting[0]}
        self._tables.append(pa.Table.from_pylist(self._waiting, pa.schema(kinds)))
        self._waiting.clear()

    @property
    def tables(self) -> list[pa.Table]:
        if self._waiting:
            self._settle()
        return self._tables

    @property
    def dataset(self) -> Dataset:
        """As a trainer reads them. There must be any."""
        # A fingerprint of datasets' own making would be a hash of all tokens.
        return Dataset(pa.concat_tables(self.tables), fingerprint="pairs")

    @property
    def rows(self) -> list[Row]:
        """As they were added."""
        return [row for table in self.tables for row in table.to_pylist()]

    def tokens(self, *columns: str) -> list[int]:
        """How many tokens every row has in these columns together."""
        counts = list[int]()
        for table in self.tables:
            lengths = (pc.list_value_length(table[name]).to_pylist() for name in columns)
            counts += map(sum, zip(*lengths, strict=True))
        return counts
