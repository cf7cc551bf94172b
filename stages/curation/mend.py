"""A model's own answer with a constraint that it broke mended by code, and ended with a whole sentence where it ran
out of tokens: demonstrations of what the model hardly ever does by itself. Only form is mended, from the answer's own
sentences, and only of kinds that are trained."""

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from stages.store.records import Example
from stages.store.text_units import sentences, words
from stages.tasks.checks import known_checks, share_passed

FEWEST = 4  # words of a sentence that says something


def said(text: str) -> list[str]:
    """Its sentences that have an end and say something: no heading, no label, none that was cut off."""
    return [s for s in sentences(text) if s.rstrip("\"'”’)*_")[-1:] in set(".!?") and len(words(s)) >= FEWEST]


def parts(text: str, count: int) -> list[str]:
    """Its sentences in so many parts of like length; fewer where it has fewer."""
    whole = said(text)
    cuts = [round(i * len(whole) / count) for i in range(count + 1)]
    return [" ".join(whole[a:b]) for a, b in pairwise(cuts) if a < b]


def marked(text: str, count: int, marks: Iterator[str], between: str = "\n") -> str:
    """Its first sentences, each behind a mark of its own."""
    return between.join(f"{next(marks)}{sentence}" for sentence in said(text)[:count])


def counted(form: str) -> Iterator[str]:
    return (form.format(i, chr(ord("a") + i - 1)) for i in range(1, 100))


def whole_sentences(text: str, count: int) -> str:
    """As many of its first sentences as have no more than so many words."""
    kept = list[str]()
    for sentence in said(text):
        if len(words(" ".join([*kept, sentence]))) > count:
            break
        kept.append(sentence)
    return " ".join(kept)


# From the largest form to the smallest: a list keeps its marks when its letters become capitals.
MENDS: dict[str, Callable[..., str]] = {
    "json_object": lambda text, keys: json.dumps(dict(zip(keys, parts(text, len(keys)), strict=False))),
    "key_value_lines": lambda text, labels: "\n".join(
        f"{label}: {part}" for label, part in zip(labels, parts(text, len(labels)), strict=False)
    ),
    "words_at_most": whole_sentences,
    "sentences_exactly": lambda text, count: " ".join(said(text)[:count]),
    "bullets_exactly": lambda text, count: marked(text, count, counted("- ")),
    "numbered_exactly": lambda text, count: marked(text, count, counted("{}. ")),
    "lettered_items": lambda text, count: marked(text, count, counted("{1}) ")),
    "checklist": lambda text, count: marked(text, count, counted("- [ ] ")),
    "steps_labelled": lambda text, count: marked(text, count, counted("Step {}: ")),
    "paragraphs_exactly": lambda text, count: "\n\n".join(parts(text, count)),
    "separated_by_rule": lambda text, count, mark: f"\n{mark}\n".join(parts(text, count)),
    "titled_sections": lambda text, count: "\n\n".join(
        f"Section {i}\n{part}" for i, part in enumerate(parts(text, count), 1)
    ),
    "repeat_request": lambda answer, text: f"{text}\n\n{answer}",
    "exclamations_exactly": lambda text, count: re.sub(r"\.(?=\s|$)", "!", text.replace("!", "."), count=count),
    "no_commas": lambda text: re.sub(r",(?!\d)", "", text),
    "bold_parts": lambda text, count: re.sub(r"\b[A-Za-z]{6,}\b", r"**\g<0>**", text, count=count),
    "highlighted_parts": lambda text, count: re.sub(r"\b[A-Za-z]{6,}\b", r"*\g<0>*", text, count=count),
    "capital_words_at_least": lambda text, count: re.sub(r"\b[a-z]{6,}\b", lambda m: m[0].upper(), text, count=count),
    "all_capitals": str.upper,
    "all_lowercase": str.lower,
}


def mended(prompt: Example, text: str) -> str | None:
    """The answer up to its last whole sentence, with every constraint mended that it breaks; None where one cannot be,
    or where another check of the prompt then fails."""
    ends = re.match(r"(?s).*[.!?}][\"'”’)*_]*", text)
    text = ends[0] if ends else ""
    checks = {check.kind: check for check in prompt.checks}
    broken = {kind for kind, check in checks.items() if not known_checks()[kind](text.strip(), **check.params)}
    if not broken <= MENDS.keys():
        return None
    for kind in (kind for kind in MENDS if kind in broken):
        text = MENDS[kind](text.strip(), **checks[kind].params)
    return text.strip() if share_passed(prompt.checks, text) == 1 else None
