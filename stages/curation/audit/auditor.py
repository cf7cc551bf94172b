"""The audit of rows: faults of a row, of its pair of answers, and of rows compared with earlier rows. A code shows its
evidence, which is not proof. Look at examples before you give a code an action."""

from collections.abc import Collection, Mapping
from functools import lru_cache, partial

from stages.config.blocks.data import Audit, Form
from stages.config.errors import UserError
from stages.curation.audit.codes import ALONE, ANSWER, TEXT, THRESHOLDS
from stages.curation.audit.faults import repeats
from stages.curation.audit.overlap import RUN, HeldOut, SeenTexts, jaccard, sketch, word_pairs
from stages.curation.harmonize import Harmonizer
from stages.formats.column_mapping import Purpose
from stages.formats.format import ParsedRow
from stages.formats.readers.row import Unwanted
from stages.formats.source_reading import ReadReport, convert
from stages.store.records import content_id, prompt_id
from stages.store.text_units import plain_words, words

SHORT = 20  # words; the ratio of two shorter answers says little


class Auditor:
    """An audit of rows, one after the other, for the given codes. It remembers the accepted rows to compare later rows
    with. `thresholds` replaces the default thresholds of single codes."""

    def __init__(
        self,
        codes: Collection[str],
        held_out: HeldOut,
        thresholds: Mapping[str, float] | None = None,
    ):
        self.codes = codes
        self.held_out = held_out
        self.thresholds = {**THRESHOLDS, **(thresholds or {})}
        self.finders = {name: find for name, find in ALONE.items() if name in codes}
        if "repetition" in codes:
            self.finders["repetition"] = partial(repeats, threshold=self.thresholds["repetition"])
        # by row id, by prompt id
        self.row_places, self.request_places = dict[str, str](), dict[str, str]()
        self.texts = SeenTexts(self.thresholds["near_duplicate"])
        self.prompts_by_split = dict[str, SeenTexts]()
        self.preferred = dict[tuple[str, str, str], str]()
        # caches the row between its search and its storing
        self.sketch = lru_cache(maxsize=2)(sketch)

    def findings(self, row: ParsedRow, split: str) -> dict[str, str]:
        """Return the evidence of every fault of a row, by code."""
        request, best, worst = request_of(row), *best_and_worst(row)
        everything = "\n".join([*(turn["content"] for turn in row.messages), *row.answers])
        finders = [
            item for item in self.finders.items() if best is not None or item[0] not in ANSWER
        ]
        texts = {name: everything if name in TEXT else request for name, _ in finders}
        evidence_by_code = {
            name: evidence for name, find in finders if (evidence := find(texts[name], best or ""))
        }
        return (
            evidence_by_code
            | self.compare_with_earlier(row, split, best)
            | self.compare_answers(row, best, worst)
        )

    def compare_with_earlier(self, row: ParsedRow, split: str, best: str | None) -> dict[str, str]:
        evidence = {}
        key, prompt = row_id(row), prompt_id(row.messages)
        if key in self.row_places:
            evidence["duplicate"] = f"as {self.row_places[key]}"
        elif "near_duplicate" in self.codes and (
            earlier := self.texts.find_nearest(self.sketch(text_of(row, best)))
        ):
            evidence["near_duplicate"] = f"{earlier.similarity:.0%} as {earlier.name}"
        elif row.messages and row.scores is None and prompt in self.request_places:
            evidence["other_answer"] = f"asked in {self.request_places[prompt]}"
        if "crosses_splits" in self.codes and row.messages:
            for other, seen in self.prompts_by_split.items():
                if other != split and (earlier := seen.find_nearest(self.sketch(text_of(row)))):
                    evidence["crosses_splits"] = (
                        f"{earlier.similarity:.0%} as {earlier.name}, in {other}"
                    )
        turns = requests_of(row)
        for text in turns or row.answers:
            if match := self.held_out.find_in(text, is_whole_request=len(turns) < 2):
                evidence["contaminated"] = f"{match.share:.0%} of {match.name}: {match.prompt}"
        return {name: text for name, text in evidence.items() if name in self.codes}

    def compare_answers(
        self, row: ParsedRow, best: str | None, worst: str | None
    ) -> dict[str, str]:
        """Return the evidence of faults of a preference, by code."""
        if best is None or worst is None:
            return {}
        long, short = sorted((len(words(best)), len(words(worst))), reverse=True)
        reverse = (prompt_id(row.messages), worst, best)
        evidence_by_code = {}
        if (common := jaccard(word_pairs(best), word_pairs(worst))) >= self.thresholds["alike"]:
            evidence_by_code["alike"] = f"{common:.0%} in common"
        if long > max(self.thresholds["lopsided"] * short, SHORT):
            evidence_by_code["lopsided"] = f"{long} words, {short} words"
        if reverse in self.preferred:
            evidence_by_code["contradicted"] = f"by {self.preferred[reverse]}"
        return {name: evidence for name, evidence in evidence_by_code.items() if name in self.codes}

    def remember(self, row: ParsedRow, split: str, place: str) -> None:
        """Store a row for the comparison with later rows. `place` names the row in evidence."""
        best, worst = best_and_worst(row)
        prompt = prompt_id(row.messages)
        self.row_places.setdefault(row_id(row), place)
        self.request_places.setdefault(prompt, place)
        if "near_duplicate" in self.codes:
            self.texts.add(self.sketch(text_of(row, best)), place)
        if "crosses_splits" in self.codes and row.messages:
            seen = self.prompts_by_split.setdefault(
                split, SeenTexts(self.thresholds["crosses_splits"])
            )
            seen.add(self.sketch(text_of(row)), place)
        if best is not None and worst is not None:
            self.preferred.setdefault((prompt, best, worst), place)


def held_out(cfg: Audit) -> HeldOut:
    """Return the prompts of the evaluation files in `data.audit.against`.
    Raise UserError for a file without prompts or with an unreadable row, whose prompt would be missed."""
    prompts = HeldOut(cfg.thresholds.get("contaminated", THRESHOLDS["contaminated"]))
    key = "data.audit.against"
    for i, source in enumerate(cfg.against or []):
        report = ReadReport()
        for row in convert(source, f"{key}[{i}].path", lambda row: row, Purpose.prompts, report):
            request = request_of(row)
            # a request this short does not identify a conversation
            if len(plain_words(request)) <= RUN:
                request = "\n\n".join(requests_of(row) or row.answers)
            prompts.add(request, report.place)
        if report.bad_rows:
            bad_row, path = report.bad_rows[0], f"{key}[{i}].path={source.path}"
            fault = f"{bad_row.place}: {bad_row.error}"
            raise UserError(
                f"{path}: a row cannot be read. {fault}. No setting leaves a row out here: correct or remove it."
            )
    return prompts


class RowFilter:
    """The filter between a read row and an example. `harmonizer` normalises and mends a row before the audit."""

    def __init__(self, audit: Audit, form: Form):
        self.actions = {code: action for code, action in audit.actions.items() if action != "keep"}
        self.auditor = Auditor(self.actions, held_out(audit), audit.thresholds)
        self.harmonizer = Harmonizer(form, audit)

    def __call__(self, row: ParsedRow, split: str, file: str, line: int) -> None:
        """Accept a row of a split, and remember it with its file and line.
        Raise Unwanted if the audit finds a fault that has an action. A fault that was mended is no longer found."""
        if not self.actions:
            return
        for code, evidence in self.auditor.findings(row, split).items():
            raise Unwanted(code, evidence, quarantined=self.actions[code] != "drop")
        self.auditor.remember(row, split, f"{file}:{line}")


def request_of(row: ParsedRow) -> str:
    """Return the last user turn; '' for plain text."""
    return next(reversed(requests_of(row)), "")


def requests_of(row: ParsedRow) -> list[str]:
    return [turn["content"] for turn in row.messages if turn["role"] == "user"]


def best_and_worst(row: ParsedRow) -> tuple[str | None, str | None]:
    """Return the answer that is learnt from, and the worst of several scored answers; None where there is none."""
    if not row.answers:
        return None, None
    if row.scores is None:
        return row.answers[0], None
    order = sorted(range(len(row.answers)), key=row.scores.__getitem__)
    worst = row.answers[order[0]] if row.scores[order[0]] < row.scores[order[-1]] else None
    return row.answers[order[-1]], worst


def text_of(row: ParsedRow, answer: str | None = None) -> str:
    """Return the turns and the answer, without a system message, which many different rows share."""
    turns = [turn["content"] for turn in row.messages if turn["role"] != "system"]
    return "\n\n".join([*turns, *([answer] if answer else [])])


def row_id(row: ParsedRow) -> str:
    return content_id(row.messages, row.answers, row.scores)
