"""Repair of a model's own answer: code mends the constraints that the answer breaks, and removes a truncated last
sentence. Mended answers demonstrate forms that the model itself rarely writes. Only the form changes, with the
answer's own sentences, and only for trained kinds of constraints."""

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from stages.store.records import Example
from stages.store.text_units import sentences, words
from stages.tasks.checks import known_checks, share_passed

FEWEST = 4  # words that a sentence needs to count as complete


def complete_sentences(text: str) -> list[str]:
    """Return the sentences with a closing mark and at least FEWEST words: no headings, labels or truncated ones."""
    return [
        s
        for s in sentences(text)
        if s.rstrip("\"'”’)*_")[-1:] in set(".!?") and len(words(s)) >= FEWEST
    ]


def split_evenly(text: str, count: int) -> list[str]:
    """Return the text's sentences as `count` parts of similar length; fewer parts if there are fewer sentences."""
    all_sentences = complete_sentences(text)
    cuts = [round(i * len(all_sentences) / count) for i in range(count + 1)]
    return [" ".join(all_sentences[a:b]) for a, b in pairwise(cuts) if a < b]


def mark_sentences(text: str, count: int, mark: str) -> str:
    """Return the first sentences in lines, each behind a mark such as "- ", which may have its number or letter."""
    numbered = enumerate(complete_sentences(text)[:count], 1)
    return "\n".join(
        f"{mark.format(i, chr(ord('a') + i - 1))}{sentence}" for i, sentence in numbered
    )


def sentences_within(text: str, count: int) -> str:
    """Return the longest beginning of whole sentences that has at most `count` words."""
    first_sentences = list[str]()
    for sentence in complete_sentences(text):
        if len(words(" ".join([*first_sentences, sentence]))) > count:
            break
        first_sentences.append(sentence)
    return " ".join(first_sentences)


# Large forms come before small ones, so that later repairs keep them: capitals do not destroy a list.
MENDS: dict[str, Callable[..., str]] = {
    "json_object": lambda text, keys: json.dumps(
        dict(zip(keys, split_evenly(text, len(keys)), strict=False))
    ),
    "key_value_lines": lambda text, labels: "\n".join(
        f"{label}: {part}"
        for label, part in zip(labels, split_evenly(text, len(labels)), strict=False)
    ),
    "words_at_most": sentences_within,
    "sentences_exactly": lambda text, count: " ".join(complete_sentences(text)[:count]),
    "bullets_exactly": partial(mark_sentences, mark="- "),
    "numbered_exactly": partial(mark_sentences, mark="{}. "),
    "lettered_items": partial(mark_sentences, mark="{1}) "),
    "checklist": partial(mark_sentences, mark="- [ ] "),
    "steps_labelled": partial(mark_sentences, mark="Step {}: "),
    "paragraphs_exactly": lambda text, count: "\n\n".join(split_evenly(text, count)),
    "separated_by_rule": lambda text, count, mark: f"\n{mark}\n".join(split_evenly(text, count)),
    "titled_sections": lambda text, count: "\n\n".join(
        f"Section {i}\n{part}" for i, part in enumerate(split_evenly(text, count), 1)
    ),
    "repeat_request": lambda answer, text: f"{text}\n\n{answer}",
    "exclamations_exactly": lambda text, count: re.sub(
        r"\.(?=\s|$)", "!", text.replace("!", "."), count=count
    ),
    "no_commas": lambda text: re.sub(r",(?!\d)", "", text),
    "bold_parts": lambda text, count: re.sub(r"\b[A-Za-z]{6,}\b", r"**\g<0>**", text, count=count),
    "highlighted_parts": lambda text, count: re.sub(
        r"\b[A-Za-z]{6,}\b", r"*\g<0>*", text, count=count
    ),
    "capital_words_at_least": lambda text, count: re.sub(
        r"\b[a-z]{6,}\b", lambda m: m[0].upper(), text, count=count
    ),
    "all_capitals": str.upper,
    "all_lowercase": str.lower,
}


def mend_answer(prompt: Example, text: str) -> str | None:
    """Return the answer up to its last whole sentence, with every broken constraint mended. Return None if a
    constraint cannot be mended, if another check of the prompt then fails, or if the prompt has no checks: then nothing
    tells whether the mended answer is good."""
    if not prompt.checks:
        return None
    text = match[0] if (match := re.match(r"(?s).*[.!?}][\"'”’)*_]*", text)) else ""
    checks = {check.kind: check for check in prompt.checks}
    broken = {
        kind
        for kind, check in checks.items()
        if not known_checks()[kind](text.strip(), **check.params)
    }
    if not broken <= MENDS.keys():
        return None
    for kind in (kind for kind in MENDS if kind in broken):
        text = MENDS[kind](text.strip(), **checks[kind].params)
    return text.strip() if share_passed(prompt.checks, text) == 1 else None
