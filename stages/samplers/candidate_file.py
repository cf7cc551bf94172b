"""Candidates that somebody has already: a file of completions, of the data's prompts or of prompts of its own."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.formats.column_mapping import Wanted
from stages.formats.format import ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.source_reading import ReadReport, convert, quarantine, tell_unused
from stages.store.records import Candidate, Example, prompt_id
from stages.store.workspace import StageDir


def read_candidates(
    cfg: CandidateFile,
    data: list[Example] | None,
    of_round: Callable[[Iterable[Example]], list[Example]],
    out: StageDir,
) -> tuple[list[Example], list[Candidate]]:
    """Return the prompts that this round asks, and their candidates in the file. `data`: the prompts that the file may
    answer; None where it brings its own. Rows of prompts that this round does not ask are left out, and counted.

    Raises:
        UserError: where more rows than `sample.max_failed` cannot be used, or none has a candidate.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    name, key, report = Path(cfg.file).name, f"{cfg.key}.file", ReadReport()
    prompts = {p.id: p for p in data or ()}
    answers = defaultdict[str, Counter[str]](Counter)
    rows = Counter[str]()

    def usable(row: ParsedRow) -> ParsedRow:
        if not row.answers:
            raise BadRow("", "has no completion")
        if row.trained:
            raise BadRow("", "has a weight, and candidates have none")
        if data is not None and prompt_id(row.messages) not in prompts:
            raise BadRow("prompt", "is none of the data's that are sampled (sample=file takes the file's own)")
        return row

    for row in convert(cfg.source, key, usable, Wanted.candidates, report):
        prompt = prompt_id(row.messages)
        if prompt not in prompts:
            prompts[prompt] = Example(prompt, row.messages, None, name, name, "preference")
            prompts[prompt].licence, prompts[prompt].origin = row.licence, row.origin
        rows[prompt] += 1
        answers[prompt].update(row.answers)
    quarantine(report.bad, report.rows, cfg.max_failed or 0.0, out, "sample.max_failed")
    tell_unused(cfg.file, [*report.unused], out)
    for line in report.told:
        out.say(line)
    of_this = of_round(prompts.values())
    texts = {p.id: answers[p.id] for p in of_this}
    if not any(texts.values()):
        raise UserError(f"{key}={cfg.file}: none of its rows answers a prompt that is asked now.")
    for count, what in (
        (rows.total() - sum(rows[prompt] for prompt in texts), "rows answer prompts that are not asked now"),
        (sum(each.total() - len(each) for each in texts.values()), "completions are copies"),
        (sum(not each for each in texts.values()), "prompts have no candidate in it"),
    ):
        if count:
            out.warn(f"{name}: {count} {what}")
    return of_this, [candidate(prompt, text, name) for prompt, each in texts.items() for text in each]


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate.of_text(prompt, text, name, "file", len(text.split()))  # words: no tokenizer is known here
