"""The audit of a data set: codes for what is wrong with a row, alone, beside its other answer, or among other rows.

A code says what a program can tell, and shows what it found. None of it is proof: look at the examples before a code
is given an action.
"""

from collections.abc import Collection, Mapping
from functools import lru_cache, partial

from stages.config.blocks.data import Audit, Form
from stages.config.errors import UserError
from stages.curation.audit.answers import repeats
from stages.curation.audit.codes import ALONE, ANSWER, THRESHOLDS
from stages.curation.audit.contamination import RUN, HeldOut
from stages.curation.audit.near_duplicates import Seen, jaccard, sketch, word_pairs
from stages.curation.harmonize import Harmonizer
from stages.formats.column_mapping import Wanted
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Unwanted
from stages.formats.source_reading import ReadReport, convert
from stages.store.records import content_id, prompt_id
from stages.store.text_units import plain_words, words

SHORT = 20  # words: of two short answers one is soon much longer


class Auditor:
    """Looks at rows one after the other, for some of the codes, and remembers those that are to stay. `thresholds` are
    those of codes that have another than the usual one."""

    def __init__(self, codes: Collection[str], held_out: HeldOut, thresholds: Mapping[str, float] | None = None):
        self.codes, self.held_out, self.limits = codes, held_out, {**THRESHOLDS, **(thresholds or {})}
        self.alone = {name: code.find for name, code in ALONE.items() if name in codes}
        if "repetition" in codes:
            self.alone["repetition"] = partial(repeats, most=self.limits["repetition"])
        self.rows, self.requests = dict[str, str](), dict[str, str]()  # ids, and where they were first
        self.texts, self.prompts = Seen(self.limits["near_duplicate"]), dict[str, Seen]()  # of a split
        self.preferred = dict[tuple[str, str, str], str]()
        self.sketch = lru_cache(maxsize=2)(sketch)  # of a row, which is looked up and then remembered

    def findings(self, said: ParsedRow, split: str) -> dict[str, str]:
        """What was found in a row, by code."""
        request, best, worst = request_of(said), *ends_of(said)
        found = {}
        for name, find in self.alone.items():
            if best is None and name in ANSWER:
                continue
            if evidence := find(request, best or ""):
                found[name] = evidence
        return found | self.among_others(said, split, best) | self.compared(said, best, worst)

    def among_others(self, said: ParsedRow, split: str, best: str | None) -> dict[str, str]:
        found = {}
        row, prompt = row_id(said), prompt_id(said.messages)
        if row in self.rows:
            found["duplicate"] = f"as {self.rows[row]}"
        elif "near_duplicate" in self.codes and (twin := self.texts.twin(self.sketch(text_of(said, best)))):
            found["near_duplicate"] = f"{twin.similarity:.0%} as {twin.name}"
        elif said.messages and said.scores is None and prompt in self.requests:
            found["other_answer"] = f"asked in {self.requests[prompt]}"
        if "crosses_splits" in self.codes and said.messages:
            for other, seen in self.prompts.items():
                if other != split and (twin := seen.twin(self.sketch(text_of(said)))):
                    found["crosses_splits"] = f"{twin.similarity:.0%} as {twin.name}, in {other}"
        turns = requests_of(said)
        for text in turns or said.answers:
            if match := self.held_out.found_in(text, whole=len(turns) < 2):
                found["contaminated"] = f"{match.share:.0%} of {match.name}: {match.prompt}"
        return {name: evidence for name, evidence in found.items() if name in self.codes}

    def compared(self, said: ParsedRow, best: str | None, worst: str | None) -> dict[str, str]:
        """What is wrong with a preference."""
        if best is None or worst is None:
            return {}
        a, b = word_pairs(best), word_pairs(worst)
        long, short = sorted((len(words(best)), len(words(worst))), reverse=True)
        reverse = (prompt_id(said.messages), worst, best)
        found = {}
        if (common := jaccard(a, b)) >= self.limits["alike"]:
            found["alike"] = f"{common:.0%} in common"
        if long > max(self.limits["lopsided"] * short, SHORT):
            found["lopsided"] = f"{long} words, {short} words"
        if reverse in self.preferred:
            found["contradicted"] = f"by {self.preferred[reverse]}"
        return {name: evidence for name, evidence in found.items() if name in self.codes}

    def remember(self, said: ParsedRow, split: str, place: str) -> None:
        """Keep what later rows are compared with. `place` names the row."""
        best, worst = ends_of(said)
        prompt = prompt_id(said.messages)
        self.rows.setdefault(row_id(said), place)
        self.requests.setdefault(prompt, place)
        if "near_duplicate" in self.codes:
            self.texts.add(self.sketch(text_of(said, best)), place)
        if "crosses_splits" in self.codes and said.messages:
            seen = self.prompts.setdefault(split, Seen(self.limits["crosses_splits"]))
            seen.add(self.sketch(text_of(said)), place)
        if best is not None and worst is not None:
            self.preferred.setdefault((prompt, best, worst), place)


def held_out(cfg: Audit) -> HeldOut:
    """The prompts of the evaluation files of `data.audit.against`.

    Raises:
        UserError: where one holds none, or a row that cannot be read: a prompt would be missed.
    """
    prompts, key = HeldOut(cfg.thresholds.get("contaminated", THRESHOLDS["contaminated"])), "data.audit.against"
    for i, source in enumerate(cfg.against or []):
        found = ReadReport()
        for said in convert(source, f"{key}[{i}].path", lambda said: said, Wanted.prompts, found):
            request = request_of(said)
            if len(plain_words(request)) <= RUN:  # too little to find a conversation by
                request = "\n\n".join(requests_of(said) or said.answers)
            prompts.add(request, found.place)
        if found.bad:
            row = found.bad[0]
            told = f"{row.file}: line {row.line}: {row.error}"
            raise UserError(f"{told}. {key}[{i}] must be readable as a whole: mend that row, or remove it.")
    return prompts


class RowFilter:
    """What a row goes through before it is an example. `shape` brings it into form first, and mends what is to be."""

    def __init__(self, audit: Audit, form: Form):
        self.actions = {code: action for code, action in audit.actions.items() if action != "keep"}
        self.auditor = Auditor(self.actions, held_out(audit), audit.thresholds)
        self.shape = Harmonizer(form, fixed(audit))

    def __call__(self, said: ParsedRow, split: str, file: str, line: int) -> None:
        """Let a row pass, of which split and place are told too, and remember it.

        Raises:
            Unwanted: where something is found in it that has an action; also where it was to be mended, and is not.
        """
        if not self.actions:
            return
        for code, evidence in self.auditor.findings(said, split).items():
            raise Unwanted(code, evidence, kept=self.actions[code] != "drop")
        self.auditor.remember(said, split, f"{file}:{line}")


def fixed(audit: Audit) -> list[str]:
    """The codes whose findings are mended."""
    return [code for code, action in audit.actions.items() if action == "fix"]


def request_of(said: ParsedRow) -> str:
    """What the user asked last; of running text nothing."""
    return next(reversed(requests_of(said)), "")


def requests_of(said: ParsedRow) -> list[str]:
    """The user's turns."""
    return [turn["content"] for turn in said.messages if turn["role"] == "user"]


def ends_of(said: ParsedRow) -> tuple[str | None, str | None]:
    """The answer that is learnt from, and the worst of several."""
    if not said.answers:
        return None, None
    if said.scores is None:
        return said.answers[0], None
    order = sorted(range(len(said.answers)), key=said.scores.__getitem__)
    worst = said.answers[order[0]] if said.scores[order[0]] < said.scores[order[-1]] else None
    return said.answers[order[-1]], worst


def text_of(said: ParsedRow, answer: str | None = None) -> str:
    return "\n\n".join([*(turn["content"] for turn in said.messages), *([answer] if answer else [])])


def row_id(said: ParsedRow) -> str:
    return content_id(said.messages, said.answers, said.scores)
