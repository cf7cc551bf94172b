"""Rows of tokens as columns in memory: as lists of Python's integers they take some nine times as much."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import pyarrow as pa
from datasets import Dataset

GROUP = 250  # rows that wait as lists until they become columns
Row = TypeVar("Row")


class HeldRows(ABC, Generic[Row]):
    """Rows to score, to train or to evaluate on, in the order in which they were added. `ids` are their names."""

    def __init__(self) -> None:
        self.ids = list[str]()
        self._waiting, self._tables = list[Row](), list[pa.Table]()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, name: str, row: Row) -> None:
        self.ids.append(name)
        self._waiting.append(row)
        if len(self._waiting) == GROUP:
            self._settle()

    def _settle(self) -> None:
        self._tables.append(self.table(self._waiting))
        self._waiting.clear()

    @abstractmethod
    def table(self, rows: list[Row]) -> pa.Table:
        """Some rows as columns."""

    @property
    def tables(self) -> list[pa.Table]:
        if self._waiting:
            self._settle()
        return self._tables

    @property
    def dataset(self) -> Dataset:
        """As a trainer reads them. There must be any."""
        # A fingerprint of datasets' own making would be a hash of all tokens.
        return Dataset(pa.concat_tables(self.tables), fingerprint="rows")
