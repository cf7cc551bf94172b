"""The fixed words of pages: the report's sections, what the models are, terms of the field, and kinds of task."""

from collections.abc import Sequence

CONTENTS = {
    "settings": "Settings",
    "results": "Results",
    "roles": "Which model is which",
    "control": "Against the control",
    "retention": "What was kept",
    "seeds": "Over seeds",
    "kinds": "What changed, by kind",
    "proportion": "Endings and wordings",
    "answers": "Answers side by side",
    "curves": "Training",
    "samples": "Samples while it trained",
    "tokens": "A training example, token by token",
    "labels": "Labels and pairs",
    "reward": "The reward model",
    "why": "Why?",
    "lineage": "Lineage and cost",
    "words": "Terms",
}

ROLES = {
    "base": "The start weights, before anything here was trained; asked in their own chat template, or as plain text "
    "where they have none.",
    "sft": "Supervised fine-tuning (SFT) of the base: trained to write the answers that it was given.",
    "control": "SFT trained further on the chosen answers alone: what the same labels do without preferences.",
    "policy": "The result: SFT trained further on pairs, to prefer the chosen answer to the rejected one.",
}

AS_IT_CAME = "The model as it came, under the chat template of its own: no SFT was done here, and DPO starts from it."

GLOSSARY = {
    "held out": "Of prompts and pairs: kept away from training, so that they tell what was learnt and not remembered.",
    "check": "A rule that code runs on an answer. A prompt counts as passed where its answer passes all of them.",
    "task, kind": "A task is one form of request with many instances; a kind is several tasks alike.",
    "points": "Percentage points: from 30% to 35% is +5.0 points.",
    "interval": "Of 100 evaluations 95 have the true difference in it: of trained tasks that on all such prompts, "
    "of untrained ones that on all tasks like these. One that holds 0 tells no change from chance. It is for these "
    "checkpoints: training again with other seeds is not in it.",
    "KL": "Kullback-Leibler divergence: how far a model's next-token distributions are from those of SFT.",
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


def contents(absent: set[str], first: Sequence[str] = ()) -> dict[str, str]:
    """Names and titles of the sections that a report has, in their order; `first`: those that come before all."""
    return {name: CONTENTS[name] for name in dict.fromkeys([*first, *CONTENTS]) if name not in absent}


def in_words(name: str) -> str:
    """What a kind, area or task is called on a page."""
    return KINDS.get(name, name.replace("_", " "))
