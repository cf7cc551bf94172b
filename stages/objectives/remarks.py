"""What the chat template makes of demonstrations, a sentence each. SFT says these once its rows are read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.models.contract import Contract, control_message
from stages.store.records import Example
from stages.store.thoughts import split_thought


@dataclass
class Remarks:
    """Counts of rows and of conversations in which a text is not read or written as it was given.

    `rows`: of each conversation. `thoughts`: those that are not trained, of each conversation the first."""

    contract: Contract
    rows: Counter[str] = field(default_factory=Counter)
    spelled: int = 0
    merged: int = 0
    trimmed: int = 0
    thoughts: list[str] = field(default_factory=list)

    def add(self, example: Example, ids: list[int], answers: list[str]) -> None:
        """Count a row: the token ids of a stretch, and the `answers` that are trained in it."""
        self.rows[example.id] += 1
        if self.rows[example.id] == 1:
            self.spelled += bool(self.contract.control_in(example.messages))
            self.merged += self.contract.form.merges(example.messages)
        thoughts = [parts.thought for parts in map(split_thought, answers) if parts]
        indented = [answer.rstrip() for answer in answers if answer[:1].isspace()]
        written = self.contract.tokenizer.decode(ids) if thoughts or indented else ""
        self.trimmed += sum(answer not in written for answer in indented)
        lost = [thought for thought in thoughts if thought not in written]
        self.thoughts += lost[:1]

    def sentences(self) -> Iterator[str]:
        if self.spelled:
            yield control_message(self.spelled, self.contract.special)
        if self.merged:
            yield (
                f"the chat template has no role for the system's or the tools' turns of {self.merged} conversations, "
                "which are merged into the user's. sft.template.roles=drop drops these."
            )
        several = sum(count > 1 for count in self.rows.values())
        if several:
            yield (
                f"the chat template changes earlier turns in {several} of {len(self.rows)} conversations. Each answer "
                f"of these is trained after the prompt as it is generated: {self.rows.total()} rows in all."
            )
        if self.trimmed:
            yield (
                f"the chat template trims the white space that {self.trimmed} earlier answers begin with. "
                "sft.turns=last trains last answers alone, which keep theirs."
            )
        if self.thoughts:
            yield (
                f"the chat template leaves out thoughts in {len(self.thoughts)} of {self.rows.total()} rows, as "
                f"{self.thoughts[0]!r:.60}. They are not trained. template=chatml and template=plain keep them."
            )
