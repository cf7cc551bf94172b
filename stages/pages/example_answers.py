"""The answers that the report shows: models side by side, and one model over the steps of its training."""

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from stages.evaluation.asked import PROMPT_SOURCES, prompts_of_set
from stages.evaluation.judged import Comparison
from stages.evaluation.outcomes import before, read_answers
from stages.evaluation.results import Results
from stages.pages.settings_table import model_nodes
from stages.store.manifest import Manifest
from stages.store.records import Candidate, Example, content_id, load
from stages.store.workspace import Sample, read_samples
from stages.tasks.checks import share_passed

WON = {1.0: "better than", 0.5: "a tie with", 0.0: "worse than"}
# The words for prompts without checks, by set of answers
SETS = {
    "answer_held_out": "of held-out pairs",
    "answer_judged": "without checks",
    "answer": "without checks",
}


class ModelAnswer(NamedTuple):
    """A model's answer, and the thought before it, which is not scored; '' without one."""

    role: str
    title: str
    answer: str
    thought: str


class ShownAnswer(NamedTuple):
    """A prompt, the answer of each model, and by role the share of checks that its answer passes."""

    prompt: Example
    answers: list[ModelAnswer]
    shares: dict[str, float]

    @property
    def before_and_after(self) -> list[ModelAnswer]:
        """The answers of the model before, or of the only opponent, and of the policy: those that the page compares."""
        by_role = {answer.role: answer for answer in self.answers}
        others = [role for role in by_role if role != "policy"]
        first = others[0] if len(others) == 1 else before(others)
        return [by_role[first], by_role["policy"]]


class JudgedPrompts(NamedTuple):
    """A judged comparison of two models, and its prompts by id."""

    comparison: Comparison
    prompts: dict[str, Example]


def changed_words(before: str, after: str) -> list[tuple[str, bool]]:
    """Return the pieces of an answer, and for each one whether it is new against the answer before."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    pieces = list[tuple[str, bool]]()
    for kind, _, _, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if start < end:
            pieces.append(("".join(new[start:end]), kind != "equal"))
    return pieces


def read_answered(
    inputs: Mapping[str, Path], models: Mapping[str, str]
) -> dict[str, list[ShownAnswer]]:
    """Return the prompts of each set of answers with the answers of all models, in the order of a hash of their ids.
    `models`: the titles of the models by role."""
    answered = dict[str, list[ShownAnswer]]()
    for name in PROMPT_SOURCES:
        if f"{name}_policy" not in inputs:
            continue
        answers, _ = read_answers({role: inputs[f"{name}_{role}"] for role in models})
        examples = {example.id: example for example in prompts_of_set(name, inputs)}
        answered[name] = [
            side(examples[i], {role: answers[role][i] for role in models}, models)
            for i in sorted(answers["policy"], key=content_id)
        ]
    return answered


def read_comparisons(inputs: Mapping[str, Path], results: Results) -> dict[str, JudgedPrompts]:
    """Return the judged comparisons with their prompts, by opponent: none that waits for people, or whose answers are all
    alike."""
    comparisons = dict[str, JudgedPrompts]()
    for against in results.judged:
        if f"judged_{against}" in inputs:
            versus = inputs[f"versus_{against}"]
            comparison = Comparison.read(versus, inputs[f"judged_{against}"])
            prompts = {e.id: e for e in load(versus / "prompts.parquet", Example)}
            comparisons[against] = JudgedPrompts(comparison, prompts)
    return comparisons


def side_by_side(
    answered: Mapping[str, list[ShownAnswer]],
    comparisons: Mapping[str, JudgedPrompts],
    results: Results,
    count: int,
) -> dict[str, list[ShownAnswer]]:
    """Return up to `count` prompts under each heading. Headings are judgements, changes in the checks passed, or
    neither. Within a heading, a hash of the content orders prompts that changed equally. `answered`: the prompts of
    each set of answers; `comparisons`: by opponent."""
    headings, models = dict[str, list[ShownAnswer]](), results.models
    for against, judged in comparisons.items():
        titles = {against: results.judged[against].opposed.title, "policy": models["policy"]}
        headings |= by_judgement(judged, titles)
    for name, what in SETS.items():
        if name not in answered:
            continue
        prompts = answered[name]
        if not headings and (plain := [s for s in prompts if not s.shares]):
            headings[f"{len(plain)} prompts {what}"] = plain
        headings |= by_checks([s for s in prompts if s.shares], results)
    return {heading: prompts[:count] for heading, prompts in headings.items() if prompts[:count]}


def side(
    prompt: Example, answers: Mapping[str, Candidate], titles: Mapping[str, str]
) -> ShownAnswer:
    shares = {
        role: share_passed(prompt.checks, each.answer)
        for role, each in answers.items()
        if prompt.checks
    }
    shown = [
        ModelAnswer(role, titles[role], each.answer, each.thought) for role, each in answers.items()
    ]
    return ShownAnswer(prompt, shown, shares)


def by_judgement(judged: JudgedPrompts, titles: Mapping[str, str]) -> dict[str, list[ShownAnswer]]:
    """Group prompts by the judgement of the policy's answer. `titles`: the opponent's first, then the policy's."""
    comparison, examples = judged
    by_result = dict[float, list[ShownAnswer]]()
    first, second = titles
    for policy, other in sorted(comparison.sides, key=lambda both: content_id(both[0].prompt_id)):
        sides = side(examples[policy.prompt_id], {first: other, second: policy}, titles)
        by_result.setdefault(comparison.won(policy, other), []).append(sides)
    headings = ((word, by_result[won]) for won, word in WON.items() if won in by_result)
    return {f"Judged {word} {titles[first]}: {len(answers)}": answers for word, answers in headings}


def by_checks(prompts: list[ShownAnswer], results: Results) -> dict[str, list[ShownAnswer]]:
    """Group prompts with checks by the policy's change against the model before, the most changed first."""
    role = results.before
    before_title = results.title_before
    policy = results.policy
    changed = sorted(prompts, key=lambda s: s.shares[role] - s.shares["policy"])
    fixed = [s for s in changed if s.shares["policy"] == 1 > s.shares[role]]
    broken = [s for s in reversed(changed) if s.shares[role] == 1 > s.shares["policy"]]
    alike = [s for s in prompts if (s.shares[role] == 1) == (s.shares["policy"] == 1)]
    return {
        f"Most improved, of {len(fixed)} that {policy} gets right and {before_title} did not": fixed,
        f"Most damaged, of {len(broken)} that {before_title} got right and {policy} does not": broken,
        f"Alike, of {len(alike)} on which both pass or both fail": alike,
    }


def strips(
    inputs: dict[str, Path], nodes: dict[str, Manifest], models: dict[str, str]
) -> list[dict[str, Any]]:
    """Return for every model (title by role) with training samples its title and a strip for each prompt."""
    training_samples = []
    for role, name in model_nodes(nodes, models).items():
        if samples := read_samples(inputs[name]):
            by_prompt = groupby(sorted(samples, key=lambda s: (s.id, s.step)), key=lambda s: s.id)
            prompts = [strip([*answers]) for _, answers in by_prompt]
            training_samples.append({"title": models[role], "prompts": prompts})
    return training_samples


def strip(samples: list[Sample]) -> dict[str, Any]:
    """Return a prompt with its answers by step; an unchanged answer occurs once, with its first and last step."""
    stays = [[*same] for _, same in groupby(samples, key=lambda s: (s.answer, s.finish_reason))]
    return {
        "prompt": samples[0].prompt,
        "answers": [{"first": same[0], "last": same[-1].step} for same in stays],
    }
