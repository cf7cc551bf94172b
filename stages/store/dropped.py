"""Rows, pairs and prompts that a model cannot read whole: counted by reason, each named in `dropped.jsonl`,
and refused where they are too many."""

import json
from collections import Counter

from stages.config.errors import UserError
from stages.store.workspace import StageDir

FILE = "dropped.jsonl"
DEFAULT_LIMIT = 0.1  # share that may be left out, where the configuration names none


class Dropped:
    """The rows, pairs or prompts (`what`) that a stage leaves out whole. Cut, a row would lose the end of its answer
    or its end of turn, and teach the model not to stop; a prompt would lose what was asked. `limit` is the share that
    may be left out (None: the usual one), and `key` the setting that says so."""

    def __init__(self, out: StageDir, rows_noun: str, limit: float | None = 1.0, key: str = ""):
        self.out, self.what, self.key = out, rows_noun, key
        self.limit = DEFAULT_LIMIT if limit is None else limit
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

    def settle(self, used: int, remaining: int) -> dict[str, int]:
        """Return how many were left out by reason, and warn of them. `kept` is how many were not, and `left` how many
        of these the stage needs at least one of.

        Raises:
            UserError: where none is left, or more than the share `limit` left out.
        """
        count = self.reasons.total()
        if not count:
            return {}
        total = used + count
        reasons = "; ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common())
        longest = f" (the longest has {self.longest:,})" if self.longest else ""
        message = f"{count:,} of {total:,} {self.what} cannot be used: {reasons}{longest}"
        if not remaining:
            raise UserError(f"{message}; none is left. {self.out / FILE} names them.")
        if count > self.limit * total:
            raise UserError(
                f"{message}; {self.key}={self.limit:g} allows fewer. Raise it to go on without them, or mend them: "
                f"{self.out / FILE} names them."
            )
        self.out.warn(f"{message}. {FILE} names them.")
        return dict(self.reasons)
