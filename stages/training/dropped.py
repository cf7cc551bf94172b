"""What a stage cannot train on: counted by reason, each named in `dropped.jsonl`, and too much of it refused."""

import json
from collections import Counter

from stages.config.errors import UserError
from stages.store.work import Work

FILE = "dropped.jsonl"


class Dropped:
    """Rows or pairs (`what`) that are left out, whole: cut, one would lose the end of its answer or its end of turn,
    and teach the model not to stop."""

    def __init__(self, out: Work, what: str):
        self.out, self.what = out, what
        self.reasons = Counter[str]()
        self.longest = 0  # tokens
        if out.main:
            (out / FILE).unlink(missing_ok=True)  # of an attempt that was killed

    def add(self, row: str, reason: object, tokens: int | None = None) -> None:
        """Leave out the row of this id; `tokens` is its length where that is the reason."""
        self.reasons[str(reason)] += 1
        self.longest = max(self.longest, tokens or 0)
        if self.out.main:
            entry = {"id": row, "reason": str(reason)} | ({"tokens": tokens} if tokens else {})
            with open(self.out / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def settle(self, kept: int, left: int, limit: float = 1.0, key: str = "") -> dict[str, int]:
        """How many were left out beside those that are `kept`, by reason; it is said. `left` of the kept ones are
        there to train on.

        Raises:
            UserError: where none is left, or more than the share `limit` left out, which `key` sets.
        """
        count = self.reasons.total()
        if not count:
            return {}
        of = kept + count
        told = "; ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common())
        longest = f" (the longest has {self.longest:,})" if self.longest else ""
        message = f"{count:,} of {of:,} {self.what} cannot be used: {told}{longest}"
        if not left:
            raise UserError(f"{message}; none is left. {self.out / FILE} names them.")
        if count > limit * of:
            raise UserError(f"{message}; {key}={limit:g} allows fewer. {self.out / FILE} names them.")
        self.out.warn(f"{message}. {FILE} names them.")
        return dict(self.reasons)
