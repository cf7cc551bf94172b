"""Candidates that somebody has already: a file of completions, of the data's prompts or of prompts of its own."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.sampling import CandidateFile
from stages.config.errors import UserError
from stages.formats.format import Said
from stages.formats.layout import Wanted
from stages.formats.row import BadRow
from stages.formats.sources import Found, convert, quarantine, tell_unused
from stages.store.records import Candidate, Example, prompt_id
from stages.store.work import Work


def given(
    cfg: CandidateFile, data: list[Example] | None, of_round: Callable[[Iterable[Example]], list[Example]], out: Work
) -> tuple[list[Example], list[Candidate]]:
    """The prompts that this round asks, and their candidates in the file. `data`: the prompts that may stand in it;
    None where it brings its own. Rows of prompts that this round does not ask are left out, and counted.

    Raises:
        UserError: where more rows than `sample.max_failed` cannot be used, or none has a candidate.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    name, key, found = Path(cfg.file).name, f"{cfg.key}.file", Found()
    prompts = {p.id: p for p in data or ()}
    answers = defaultdict[str, Counter[str]](Counter)
    rows = Counter[str]()

    def of_row(said: Said) -> Said:
        if not said.answers:
            raise BadRow("", "has no completion")
        if said.trained:
            raise BadRow("", "has a weight, and candidates have none")
        if data is not None and prompt_id(said.messages) not in prompts:
            raise BadRow("prompt", "is none of the data's that are sampled (sample=file takes the file's own)")
        return said

    for said in convert(Source(cfg.file, columns=cfg.columns), key, of_row, Wanted.candidates, found):
        prompt = prompt_id(said.messages)
        if prompt not in prompts:
            prompts[prompt] = Example(prompt, said.messages, None, name, name, "preference")
            prompts[prompt].licence, prompts[prompt].origin = said.licence, said.origin
        rows[prompt] += 1
        answers[prompt].update(said.answers)
    quarantine(found.bad, found.rows, cfg.max_failed or 0.0, out, "sample.max_failed")
    tell_unused(cfg.file, [*found.unused], out)
    for line in found.told:
        out.say(line)
    asked = of_round(prompts.values())
    texts = {p.id: answers[p.id] for p in asked}
    if not any(texts.values()):
        raise UserError(f"{key}={cfg.file}: none of its rows answers a prompt that is asked now.")
    for count, what in (
        (rows.total() - sum(rows[prompt] for prompt in texts), "rows answer prompts that are not asked now"),
        (sum(each.total() - len(each) for each in texts.values()), "completions are copies"),
        (sum(not each for each in texts.values()), "prompts have no candidate in it"),
    ):
        if count:
            out.warn(f"{name}: {count} {what}")
    return asked, [candidate(prompt, text, name) for prompt, each in texts.items() for text in each]


def candidate(prompt: str, text: str, name: str) -> Candidate:
    return Candidate.of_text(prompt, text, name, "file", len(text.split()))  # words: no tokenizer is known here
