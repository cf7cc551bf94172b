"""The fixed words of pages: the report's sections, what the models are, terms of the field, and kinds of task."""

from collections.abc import Mapping, Sequence
from typing import Any

CONTENTS = {  # titles, and what is folded under a conclusion
    "results": ("Checks", "rates by group of prompts"),
    "learnt": ("What was learnt of held-out pairs", "by log-ratio, log-prob and length"),
    "judged": ("Judged side by side", "win rates, and judges that read nothing"),
    "outside": ("On labelled sets from outside", "rates by set"),
    "retention": ("What was kept", "claims and tests"),
    "seeds": ("Over seeds", "rates over seeds, and seed by seed"),
    "kinds": ("What changed, by kind", "a chart by kind, and by task"),
    "proportion": ("Length, endings and wordings", "tokens, endings, loops, KL, wordings"),
    "answers": ("Answers side by side", "more answers"),
    "why": ("Why?", "what was measured, and what is normal"),
    "labels": ("Labels and pairs", "figures, strategies, the first pair"),
    "curves": ("Training", "curves, samples, a training example"),
    "reward": ("The reward model", "accuracy, calibration, best of n"),
    "settings": ("Settings", "all settings that decide the result"),
    "lineage": ("Lineage and cost", "every node, and the command that makes it again"),
    "words": ("Models and terms", "models and terms"),
}
NOT_ASKED_FOR = "On generated tasks, which your preferences are not about"

ROLES = {
    "base": "The start weights, before anything here was trained; asked in their own chat template, or as plain text "
    "where they have none.",
    "sft": "Supervised fine-tuning (SFT) of the base: trained to write the answers that it was given.",
    "control": "SFT trained further on the chosen answers alone, in the same order and as many steps: what the same "
    "labels do without preferences.",
    "policy": "The result: SFT trained further on pairs, to prefer the chosen answer to the rejected one.",
    "other": "A model as it came, under the chat template of its own: no SFT was done here.",
}

GLOSSARY = {
    "held out": "Of prompts and pairs: kept away from training, so that they tell what was learnt and not remembered.",
    "check": "A rule that code runs on an answer. A prompt counts as passed where its answer passes all of them.",
    "task, kind": "A task is one form of request with many instances; a kind is several tasks alike.",
    "points": "Percentage points: from 30% to 35% is +5.0 points.",
    "interval": "Of 100 evaluations 95 have the true difference in it: of trained tasks that on all such prompts, "
    "of untrained ones that on all tasks like these. One that holds 0 tells no change from chance. It is for these "
    "checkpoints: training again with other seeds is not in it.",
    "KL": "Kullback-Leibler divergence: how far a model's next-token distributions are from another's.",
    "log-prob": "The logarithm of a probability, in nats: 0 is certain, −0.7 is one in two.",
    "DPO": "Direct preference optimisation: raises the probability of chosen answers against rejected ones.",
    "beta": "How strongly DPO is held to its reference: the higher, the less it moves.",
    "reference": "Of DPO, the model that its loss compares with: the one it starts from, or with dpo.reference=sft "
    "that of the first round. Of a prompt, an answer that is known to be right.",
    "reward, margin": "Beta times how much likelier an answer has become; the chosen one's less the rejected one's.",
    "greedy": "Always the likeliest next token. Test answers are greedy; candidates that are sampled here are drawn "
    "at random, unless their temperature is 0.",
}
KINDS = {
    # short tasks
    "arithmetic": "arithmetic",
    "case": "upper and lower case",
    "classify": "choosing a label",
    "combined": "two tasks in one",
    "context": "answering from a text",
    "count": "counting",
    "edit": "editing words",
    "ending": "fixed endings",
    "extract": "finding words in a text",
    "follow_up": "a second request",
    "list": "making lists",
    "order": "sorting",
    "pick": "picking one of several",
    "punctuation": "punctuation",
    "structure": "JSON, CSV and forms",
    "system": "instructions of a system message",
    "table": "reading a table",
    # areas of constraints on open requests
    "attachments": "something added to the answer",
    "emphasis": "emphasis",
    "ends": "how an answer begins or ends",
    "formats": "a format for data",
    "keywords": "words to use or to avoid",
    "layout": "paragraphs and headings",
    "lengths": "a length",
    "letters": "letters to use or to avoid",
    "lists": "lists",
    "voice": "person, tone and manner",
    "several": "several constraints at once",
    "request": "no constraint",
}


def contents(conclusions: Mapping[str, Any], gives_verdict: Sequence[str], helped: bool) -> dict[str, tuple[str, ...]]:
    """Title, name of the details and conclusion of the sections that have one, in their order: first the parts of the
    verdict, and why, where it did not help."""
    first = ["results" if part == "checks" else part for part in gives_verdict] + ["why"] * (not helped)
    titles = CONTENTS | ({} if "results" in first else {"results": (NOT_ASKED_FOR, CONTENTS["results"][1])})
    return {n: (*titles[n], conclusions[n]) for n in dict.fromkeys([*first, *CONTENTS]) if conclusions[n]}


def in_words(name: str) -> str:
    """What a kind, area or task is called on a page."""
    return KINDS.get(name, name.replace("_", " "))
