"""One form for the rows of all sources: what an audit finds is mended where that is unambiguous, characters and white
space have one normal form, and one policy says which conversations have a system message."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from typing import Any, Literal, cast

from stages.config.blocks.data import Form
from stages.curation.fixing import FIXES
from stages.formats.format import Said
from stages.store.records import Message, content_id

ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")  # of a line, as others write them
SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f\u205f]")  # as wide as they may be, but for the ideographic one
TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
LEADING = re.compile(r"\A(?:[ \t]*\n)+")  # lines; the first line with words keeps its indentation

NORMALISED = {"unicode": "characters", "whitespace": "white space"}  # by key of the form


def trimmed(text: str) -> str:
    """A text with \\n at the end of its lines and nothing before it, plain spaces, and no empty lines around it."""
    return LEADING.sub("", TRAILING.sub("", SPACES.sub(" ", ENDS.sub("\n", text)))).rstrip()


class Shape:
    """Brings rows into form, and counts what it changed. `fixed`: the codes of an audit whose findings are mended."""

    def __init__(self, form: Form, fixed: Collection[str] = ()):
        self.form, self.fixed = form, [code for code in FIXES if code in fixed]
        self.rows = self.before = self.after = 0  # before and after: those with a system message
        self.changed = Counter[str]()  # rows, by code or by key of the form

    def __call__(self, said: Said) -> Said:
        """The row in form.

        Raises:
            BadRow: where mending leaves nothing of a text.
        """
        self.rows += 1
        for code in self.fixed:
            said = self.counted(code, said, FIXES[code](said))
        if kind := self.form.unicode:
            normal = cast(Literal["NFC", "NFKC"], kind)
            said = self.counted("unicode", said, said.rewritten(lambda text, _: unicodedata.normalize(normal, text)))
        if self.form.whitespace:
            said = self.counted("whitespace", said, said.rewritten(lambda text, _: trimmed(text)))
        if self.form.system in (None, "keep"):
            return said
        before = has_system(said.messages)
        said = said._replace(messages=self.instructed(said.messages))
        self.before, self.after = self.before + before, self.after + has_system(said.messages)
        return said

    def counted(self, what: str, before: Said, after: Said) -> Said:
        self.changed[what] += after != before
        return after

    def instructed(self, messages: list[Message]) -> list[Message]:
        """A conversation with the system message that the policy gives it. One that tells of tools stays."""
        policy, had = self.form.system, has_system(messages)
        if not messages or (had and "<tools>" in messages[0]["content"]):
            return messages
        if policy == "insert" and had:
            return messages
        rest = messages[had:]
        if policy == "drop":
            return rest
        prompts = self.form.system_prompts or []
        drawn = prompts[int(content_id("system", rest), 16) % len(prompts)]
        return [{"role": "system", "content": drawn}, *rest]

    def metrics(self) -> dict[str, Any]:
        """What was changed, for a node's metrics; empty where nothing was to be."""
        found: dict[str, Any] = {}
        if self.form.system not in (None, "keep"):
            found["system"] = {"before": self.before, "after": self.after}
        named = [name for name in NORMALISED if vars(self.form)[name]]
        if named:
            found["normalised"] = {name: self.changed[name] for name in named}
        if self.fixed:
            found["fixed"] = {code: self.changed[code] for code in self.fixed}
        return {**found, "shaped": self.rows} if found else {}

    def told(self) -> str:
        """The same in words."""
        found = self.metrics()
        told = []
        if counts := found.get("system"):
            told.append(f"{counts['after']} of {self.rows} rows with a system message, {counts['before']} before")
        told += [f"{NORMALISED[name]} of {count} normalised" for name, count in found.get("normalised", {}).items()]
        told += [f"{count} mended ({code})" for code, count in found.get("fixed", {}).items()]
        return ", ".join(told)


def has_system(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["role"] == "system"
