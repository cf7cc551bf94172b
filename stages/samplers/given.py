"""Candidates that somebody has already: a file with prompts of the data, and completions of each."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from stages.config.blocks.data import Source
from stages.config.blocks.sampling import Sample
from stages.config.errors import UserError
from stages.formats.format import Said
from stages.formats.layout import Wanted
from stages.formats.row import BadRow
from stages.formats.sources import Found, convert, quarantine, tell_unused
from stages.models.contract import Contract
from stages.store.records import Candidate, Example, prompt_id
from stages.store.work import Work


def given(cfg: Sample, prompts: list[Example], known: Collection[str], terms: Contract, out: Work) -> list[Candidate]:
    """The candidates of these prompts in `sample.file`, in the order of the prompts. `known`: the ids of all prompts
    that may stand in it; rows of those that are not asked now are left out, and counted.

    Raises:
        UserError: where more rows than `sample.max_failed` cannot be used, or none has a candidate.
    """
    (out / "quarantine.jsonl").unlink(missing_ok=True)  # of an attempt that was killed
    name, key, asked, found = Path(str(cfg.file)).name, f"{cfg.key}.file", {p.id for p in prompts}, Found()
    answers = defaultdict[str, dict[str, None]](dict)
    copies = 0

    def of_row(said: Said) -> tuple[str, list[str]] | None:
        prompt = prompt_id(said.messages)
        if not said.answers:
            raise BadRow("", "has no completion")
        if said.trained:
            raise BadRow("", "has a weight, and candidates have none")
        if prompt not in known:
            raise BadRow("prompt", "is none of the data's that are sampled")
        return (prompt, said.answers) if prompt in asked else None

    for prompt, texts in convert(Source(str(cfg.file), columns=cfg.columns), key, of_row, Wanted.candidates, found):
        for text in texts:
            copies += text in answers[prompt]
            answers[prompt][text] = None
    quarantine(found.bad, found.rows, cfg.max_failed or 0.0, out, "sample.max_failed")
    tell_unused(str(cfg.file), [*found.unused], out)
    for line in found.told:
        out.say(line)
    if not answers:
        raise UserError(f"{key}={cfg.file}: none of its rows answers a prompt that is asked now.")
    for count, what in (
        (found.left_out, "rows answer prompts that are not asked now"),
        (copies, "completions are copies"),
        (len(asked) - len(answers), "prompts have no candidate in it"),
    ):
        if count:
            out.warn(f"{name}: {count} {what}")
    return [
        Candidate.of_text(p.id, text, name, "file", terms.length(text))
        for p in prompts
        for text in answers.get(p.id, ())
    ]
