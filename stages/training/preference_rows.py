"""Tokenised pairs as columns: 4 bytes a token, in memory. As lists of Python's integers they take 36."""

import pyarrow as pa
import pyarrow.compute as pc

from stages.training.held import HeldRows
from stages.training.micro_batches import Row

TOKENS = pa.list_(pa.int32())


class PreferenceRows(HeldRows[Row]):
    """Pairs. What is called `…_ids` in a row are token ids, all else figures."""

    def table(self, rows: list[Row]) -> pa.Table:
        kinds = {name: TOKENS if name.endswith("_ids") else pa.float64() for name in rows[0]}
        return pa.Table.from_pylist(rows, pa.schema(kinds))

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
