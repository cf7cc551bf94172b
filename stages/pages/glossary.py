"""Fixed texts of pages: the report's sections, descriptions of the models, terms, and kinds of task."""

from collections.abc import Mapping, Sequence
from typing import Any

CONTENTS = {  # the title of each section, and the label of its folded details
    "results": ("Checks", "rates by group of prompts"),
    "learnt": ("Held-out pairs", "by log-ratio, log-prob and length"),
    "judged": ("Judged side by side", "win rates, and judges that ignore the text"),
    "outside": ("Your labelled test sets", "rates by set"),
    "retention": ("What the policy kept", "claims and tests"),
    "seeds": ("Over seeds", "rates over seeds, and seed by seed"),
    "kinds": ("What changed, by kind", "a chart by kind, and by task"),
    "proportion": ("Length, endings and wordings", "tokens, endings, loops, KL, wordings"),
    "answers": ("Answers side by side", "more answers"),
    "why": ("Why?", "what was measured, and what is normal"),
    "labels": ("Labels and pairs", "figures, strategies, the first pair"),
    "curves": ("Training", "curves, samples, a training example"),
    "reward": ("The reward model", "accuracy, calibration, best of n"),
    "settings": ("Settings", "all settings that decide the result"),
    "lineage": ("Lineage and cost", "every node, and the command that rebuilds it"),
    "words": ("Models and terms", "models and terms"),
}
NOT_ASKED_FOR = "On generated tasks, which your preferences are not about"

ROLES = {
    "base": "The model before any training here, asked in its own chat template, or as plain text if it has none.",
    "sft": "Supervised fine-tuning (SFT) of the base: trained to write the answers of its demonstrations.",
    "control": "SFT trained further on the chosen answers alone, in the same order and for as many steps: it shows "
    "the effect of the same labels without preferences.",
    "policy": "The result: SFT trained further on pairs, to prefer the chosen answer to the rejected one.",
    "other": "A model without any training here, asked in its own chat template: no SFT was done here.",
}

GLOSSARY = {
    "held out": "Kept out of training, as some prompts and pairs are: results on them show learning, not memory.",
    "check": "A rule that code runs on an answer. A prompt is passed if its answer passes all of the prompt's checks.",
    "task, kind": "A task is one form of request with many instances; a kind is a group of similar tasks.",
    "points": "Percentage points: from 30% to 35% is +5.0 points.",
    "interval": "A 95% interval contains the true value in 95 of 100 evaluations: for trained tasks, over all prompts "
    "of these tasks; for untrained tasks, over all tasks like these. If it contains 0, no change is shown. It is "
    "about these checkpoints, not about training with other seeds.",
    "KL": "Kullback-Leibler divergence: how far a model's next-token distributions are from another model's.",
    "log-prob": "The logarithm of a probability, in nats: 0 is certain, −0.7 is one in two.",
    "DPO": "Direct preference optimisation: raises the probability of chosen answers against rejected ones.",
    "beta": "The strength with which DPO keeps a model near its reference: the higher, the less the model moves.",
    "reference": "For DPO, the model that its loss compares with: the one it starts from or, with dpo.reference=sft, "
    "the one of the first round. For a prompt, an answer that is known to be right.",
    "reward, margin": "Reward: beta times the gain in an answer's log-prob over the reference. Margin: the chosen "
    "answer's reward minus the rejected one's.",
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
    """Return (title, label of the details, conclusion) of every section that has a conclusion, in page order. The
    parts of the verdict come first, followed by the diagnosis if the training did not help."""
    first = ["results" if part == "checks" else part for part in gives_verdict] + ["why"] * (not helped)
    titles = CONTENTS | ({} if "results" in first else {"results": (NOT_ASKED_FOR, CONTENTS["results"][1])})
    return {n: (*titles[n], conclusions[n]) for n in dict.fromkeys([*first, *CONTENTS]) if conclusions[n]}


def in_words(name: str) -> str:
    """Return the title of a kind, area or task on a page."""
    return KINDS.get(name, name.replace("_", " "))
