"""The page of all answers: every prompt of the evaluation with its reference and the answers of all models.

The page holds the answers as JSON. Its script shows 50 prompts at a time, as text and never as HTML."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.config.errors import visible
from stages.evaluation.asked import PROMPT_SOURCES
from stages.evaluation.measures import FAVOURED, POLICY, Measure
from stages.evaluation.results import Results
from stages.pages.environment import LOOKS, environment
from stages.pages.example_answers import WON, JudgedPrompts, ShownAnswer
from stages.pages.glossary import in_words
from stages.store.user_columns import MOST_VALUES, UserColumns, read_user_columns

PAGE = "answers.html"  # file name in a report's node and in the store's root
MOST_CHARACTERS = 25_000_000  # of all texts on the page, which a browser reads in two seconds
HALF = 0.5  # of a comparison: a tie


@dataclass
class ComparedPrompt:
    """A prompt with all answers. `change`: that of the policy against the model before, by the first judgement or by
    the share of checks passed, below 0 if worse; nan if nobody judged and nothing was checked. `gained_less`: the
    policy favours the worse answer of the prompt's held-out pairs. `clauses`: what judges and pairs say."""

    shown: ShownAnswer
    change: float
    gained_less: bool
    clauses: list[str]

    @property
    def is_changed(self) -> bool:
        """True if the policy's answer is another text than that of the model before."""
        before, policy = self.shown.before_and_after
        return before.answer != policy.answer

    @property
    def state(self) -> str:
        """The word for the change: worse, better, alike, or '' if it is not known."""
        if math.isnan(self.change):
            return ""
        if self.change == 0:
            return "alike"
        return "worse" if self.change < 0 else "better"

    def place(self) -> tuple[float, bool, bool]:
        """Return by what prompts are sorted: the worst first, then pairs that gained less on the better answer, then changed
        answers."""
        change = 0.0 if math.isnan(self.change) else self.change
        return change, not self.gained_less, not self.is_changed


def render_answers(
    answered: Mapping[str, Sequence[ShownAnswer]],
    comparisons: Mapping[str, JudgedPrompts],
    measures: Sequence[Measure],
    inputs: Mapping[str, Path],
    results: Results,
) -> str:
    """Return the page. `answered`: the prompts of each set of answers; `comparisons`: by opponent; `measures`: of the
    evaluation."""
    models = results.models
    prompts = compare_prompts(answered, comparisons, measures, results)
    columns = columns_of_prompts(answered, inputs, prompts)
    rows = list[dict[str, Any]]()
    texts = list[str]()
    characters = 0
    for prompt in sorted(prompts, key=ComparedPrompt.place):
        row = describe_prompt(prompt, columns)
        text = as_json(row)
        characters += len(text)
        if rows and characters > MOST_CHARACTERS:
            break
        rows.append(row)
        texts.append(text)
    content = f'{{"models": {as_json(shown_models(models))}, "prompts": [{", ".join(texts)}]}}'
    return (
        environment()
        .get_template("answers.html.jinja")
        .render(
            content=Markup(content),
            shown=len(rows),
            total=len(prompts),
            models=models,
            policy=results.policy,
            before=results.title_before,
            states=count_states(prompts),
            changed=sum(prompt.is_changed for prompt in prompts),
            gained_less=sum(prompt.gained_less for prompt in prompts),
            columns=values_by_column(rows),
        )
    )


def as_json(value: Any) -> str:
    """Return a value as JSON without any "<", so that no text can end the element that holds it."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def compare_prompts(
    answered: Mapping[str, Sequence[ShownAnswer]],
    comparisons: Mapping[str, JudgedPrompts],
    measures: Sequence[Measure],
    results: Results,
) -> list[ComparedPrompt]:
    """Return every prompt with what judges, checks and held-out pairs say of the policy's answer."""
    judgements = won_by_prompt(comparisons)
    favoured = lowest_favoured(measures)
    prompts = list[ComparedPrompt]()
    for of_set in answered.values():
        for shown in of_set:
            won_by_opponent = judgements[shown.prompt.id]
            clauses = [
                f"judged {WON[won]} {results.judged[against].opposed.title}"
                for against, won in won_by_opponent.items()
            ]
            gained_less = favoured.get(shown.prompt.id, 1.0) < HALF
            if gained_less:
                clauses.append("held-out pair: gained less on the better answer")
            change = change_of(shown, won_by_opponent, results.before)
            prompts.append(ComparedPrompt(shown, change, gained_less, clauses))
    return prompts


def won_by_prompt(comparisons: Mapping[str, JudgedPrompts]) -> dict[str, dict[str, float]]:
    """Return by prompt and opponent 1 if the policy's answer won, 0.5 for a tie, and 0 if it lost."""
    by_prompt = defaultdict[str, dict[str, float]](dict)
    for against, (comparison, _) in comparisons.items():
        for policy, other in comparison.sides:
            won = comparison.won(policy, other)
            if not math.isnan(won):
                by_prompt[policy.prompt_id][against] = won
    return by_prompt


def lowest_favoured(measures: Sequence[Measure]) -> dict[str, float]:
    """Return by prompt the lowest share in which the policy favours the better answer of a held-out pair."""
    lowest = dict[str, float]()
    for row in measures:
        if row.measure == FAVOURED and row.role == POLICY:
            lowest[row.group] = min(row.value, lowest.get(row.group, 1.0))
    return lowest


def change_of(shown: ShownAnswer, won_by_opponent: Mapping[str, float], before: str) -> float:
    """Return the change of the policy's answer: by the judgement against the model before, else by the first one, else
    by the share of checks passed; nan without either."""
    for against in (before, *won_by_opponent):
        if against in won_by_opponent:
            return won_by_opponent[against] - HALF
    if shown.shares:
        return shown.shares["policy"] - shown.shares[before]
    return math.nan


def columns_of_prompts(
    answered: Mapping[str, Sequence[ShownAnswer]],
    inputs: Mapping[str, Path],
    prompts: Sequence[ComparedPrompt],
) -> UserColumns:
    """Return the user's columns of the prompts, from the files that the nodes of the prompts have read."""
    ids = {prompt.shown.prompt.id for prompt in prompts}
    roles = {PROMPT_SOURCES[name] for name in answered}
    if "pairs" in roles:
        roles.add("unpaired")
    return read_user_columns([inputs[role] for role in sorted(roles & inputs.keys())], ids)


def shown_models(models: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the title, look and glyph of each model."""
    shown = list[dict[str, str]]()
    for role, title in models.items():
        look = role if role in LOOKS else "sft"
        shown.append({"title": title, "look": look, "glyph": LOOKS[look].glyph})
    return shown


def describe_prompt(prompt: ComparedPrompt, columns: UserColumns) -> dict[str, Any]:
    """Return what the page's script shows of a prompt. Invisible characters are written out."""
    example = prompt.shown.prompt
    answers = list[dict[str, Any]]()
    for role, _, answer, thought in prompt.shown.answers:
        passes = prompt.shown.shares[role] == 1 if prompt.shown.shares else None
        answers.append(
            {"text": written_out(answer), "thought": written_out(thought), "passes": passes}
        )
    values = dict[str, str]()
    for name, value in columns.of(example.id).items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            values[written_out(name)] = written_out(text)
    return {
        "turns": [[turn["role"], written_out(turn["content"])] for turn in example.messages],
        "task": written_out(in_words(example.task)),
        "reference": written_out(example.reference or ""),
        "answers": answers,
        "state": prompt.state,
        "changed": prompt.is_changed,
        "gained_less": prompt.gained_less,
        "clauses": [written_out(clause) for clause in prompt.clauses],
        "columns": values,
    }


def written_out(text: str) -> str:
    """Return a text with escapes for its invisible characters, as all pages show it."""
    return visible(text, "\n\t")


def count_states(prompts: Sequence[ComparedPrompt]) -> dict[str, int]:
    """Return the number of prompts by the word for their change, without words that no prompt has."""
    counts = dict[str, int]()
    for state in ("worse", "better", "alike"):
        number = sum(prompt.state == state for prompt in prompts)
        if number:
            counts[state] = number
    return counts


def values_by_column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the values of each column that has few enough to choose one from."""
    values = defaultdict[str, set[str]](set)
    for row in rows:
        for name, value in row["columns"].items():
            values[name].add(value)
    return {
        name: sorted(values[name])
        for name in sorted(values)
        if 1 < len(values[name]) <= MOST_VALUES
    }
