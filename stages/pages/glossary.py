"""Fixed texts of pages, in glossary.yaml: the report's sections, descriptions of models, terms, kinds of task.

`glossary.yaml` of an extra adds tables, and entries to these tables. It may name by table the entry `before` which its own stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.config.extras import files_of_extras
from stages.config.installation import parse_yaml, read_beside
from stages.config.stage_table import POLICY_STAGES, STAGES
from stages.pages import objectives


def texts_with_those_of_extras() -> dict[str, Any]:
    """Return the texts of the core, with the entries that extras add to its tables."""
    texts: dict[str, Any] = read_beside(__file__)
    for file in files_of_extras("glossary.yaml"):
        further: dict[str, Any] = parse_yaml(file.read_text(encoding="utf-8"))
        before = further.pop("before", {})
        for table, entries in further.items():
            if table in texts:
                entries = with_entries(texts[table], entries, before.get(table))
            texts[table] = entries
    return texts


def with_entries(
    table: Mapping[str, Any], entries: Mapping[str, Any], before: str | None
) -> dict[str, Any]:
    """Return a table with further entries, which stand before one of its own, or at its end."""
    names = [*table]
    place = names.index(before) if before else len(names)
    ordered = [*names[:place], *entries, *names[place:]]
    both = {**table, **entries}
    return {name: both[name] for name in ordered}


TEXTS = texts_with_those_of_extras()
CONTENTS: dict[str, tuple[str, str]] = {
    name: tuple(texts) for name, texts in TEXTS["contents"].items()
}
ROLES: dict[str, str] = TEXTS["roles"] | objectives.ROLES
GLOSSARY: dict[str, str] = TEXTS["glossary"]
KINDS: dict[str, str] = TEXTS["kinds"]


def steps_by_stage() -> dict[str, list[str]]:
    """Return for each stage of the chain its title, and the metric that is shown with its unit."""
    steps = dict[str, list[str]]()
    for stage, (title, metric, unit) in TEXTS["steps"].items():
        if stage == "policy":
            steps |= {name: [STAGES[name].title, metric, unit] for name in POLICY_STAGES}
        else:
            steps[stage] = [title, metric, unit]
    return steps


STEPS = steps_by_stage()
NOT_ASKED_FOR = "On generated tasks, which your preferences are not about"


def contents(
    conclusions: Mapping[str, Any], gives_verdict: Sequence[str], helped: bool
) -> dict[str, tuple[str, ...]]:
    """Return (title, label of the details, conclusion) of every section that has a conclusion, in page order. The
    parts of the verdict come first, followed by the diagnosis if the training did not help."""
    first = ["results" if part == "checks" else part for part in gives_verdict] + ["why"] * (
        not helped
    )
    titles = CONTENTS | (
        {} if "results" in first else {"results": (NOT_ASKED_FOR, CONTENTS["results"][1])}
    )
    return {
        n: (*titles[n], conclusions[n])
        for n in dict.fromkeys([*first, *CONTENTS])
        if conclusions[n]
    }


def in_words(name: str) -> str:
    """Return the title of a kind, area or task on a page."""
    return KINDS.get(name, name.replace("_", " "))
