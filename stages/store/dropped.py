"""Rows, pairs and prompts that a stage drops, since a model cannot read them completely.

They are counted by reason and listed in `dropped.jsonl`. If too many are dropped, the stage ends with an error."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil, inf
from pathlib import Path

from stages.config.errors import UserError
from stages.store.sealed_json import WRONG_SHAPE, Damaged
from stages.store.workspace import StageDir

FILE = "dropped.jsonl"
DEFAULT_LIMIT = 0.1  # the share of rows that may be dropped, if the configuration does not set one
SHARES = (90, 98, 100)  # percent of rows for which the needed length is told


def keeping_message(key: str, fitting: int, too_long: Sequence[int], most: float = inf) -> str:
    """Return the values of the setting `key` that keep 90, 98 and 100% of the rows, of which `fitting` fit already; ''
    if none helps. `too_long`: the tokens of the others. `most`: the tokens that the model reads."""
    lengths, total = sorted(too_long), fitting + len(too_long)
    ranks = {share: ceil(share * total / 100) - fitting for share in SHARES}
    needed = {share: lengths[rank - 1] for share, rank in ranks.items() if rank > 0}
    highest_share = {length: share for share, length in sorted(needed.items()) if length <= most}
    return ", ".join(f"{key}={length} keeps {share}%" for length, share in highest_share.items())


def read_dropped_ids(node: Path) -> set[str]:
    """Return the ids of the rows that a published node's stage dropped. Raise Damaged if its list cannot be read."""
    path = node / FILE
    if not path.exists():
        return set()
    try:
        return {json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()}
    except WRONG_SHAPE as error:
        raise Damaged(path, error) from error


class Dropped:
    """The rows, pairs or prompts (`rows_noun`) that a stage drops instead of truncating them. A truncated row has no
    end of turn, so the model would learn not to stop. A truncated prompt has lost the request. `limit` is the share
    that may be dropped (None: the default), and `key` the setting of this limit. `most` is the number of tokens that
    the model reads, if known: no setting of a length can be higher."""

    most: float = inf

    def __init__(self, out: StageDir, rows_noun: str, limit: float | None = 1.0, key: str = ""):
        self.out, self.rows_noun, self.key = out, rows_noun, key
        self.limit = DEFAULT_LIMIT if limit is None else limit
        self.reasons = Counter[str]()
        self.longest = 0  # tokens
        self.lengths_by_key = defaultdict[str, list[int]](list)
        if out.is_main:
            (out / FILE).unlink(missing_ok=True)  # the list of a killed attempt

    def add(self, row: str, reason: object, tokens: int | None = None, key: str = "") -> None:
        """Drop the row with this id. `tokens` is its length, if that is the reason, and `key` the setting that limits
        it, if there is one."""
        self.reasons[str(reason)] += 1
        self.longest = max(self.longest, tokens or 0)
        if key and tokens:
            self.lengths_by_key[key].append(tokens)
        if self.out.is_main:
            entry = {"id": row, "reason": str(reason)} | ({"tokens": tokens} if tokens else {})
            with open(self.out / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def settle(self, used: int, remaining: int) -> dict[str, int]:
        """Warn of the dropped rows, and return their number by reason. `used` rows were not dropped, and the stage
        needs at least one of `remaining` rows among these.
        Raise UserError if `remaining` is 0, or more than the share `limit` was dropped."""
        count = self.reasons.total()
        if not count:
            return {}
        total = used + count
        reasons = "; ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common())
        longest = f" (the longest has {self.longest:,})" if self.longest else ""
        message = f"{count:,} of {total:,} {self.rows_noun} are dropped: {reasons}{longest}"
        hints = [
            keeping_message(key, used, lengths, self.most)
            for key, lengths in self.lengths_by_key.items()
        ]
        message = ". ".join(filter(None, [message, *hints]))
        if not remaining:
            raise UserError(
                f"{message}. No {self.rows_noun} remain. {self.out / FILE} lists the dropped ones."
            )
        if count > self.limit * total:
            way_out = (
                f"Raise {self.key}, or correct the {self.rows_noun} that {self.out / FILE} lists."
            )
            limit = f"{self.key}={self.limit:g} is the largest share that may be dropped"
            raise UserError(f"{message}. {limit}. {way_out}")
        self.out.warn(f"{message}. {FILE} lists them.")
        return dict(self.reasons)
