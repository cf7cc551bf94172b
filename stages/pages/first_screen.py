"""The first screen of a report: one sentence, one chart of rates, a lamp for each question, one prompt before and after,
the chain and the facts. A question that was not asked says so, with the command that asks it."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.config.blocks.evaluation import REFERENCES
from stages.config.installation import program
from stages.config.stage_table import DRAWING, POLICY_STAGES
from stages.evaluation import claims
from stages.evaluation.claims import OVER_CONTROL, Claim, Word
from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.intervals import Interval
from stages.evaluation.results import Group, Intervals, JudgedComparison, Learnt, Results, Waiting
from stages.pages.control_name import CONTROL
from stages.pages.example_answers import ShownAnswer
from stages.pages.glossary import STEPS, TEXTS
from stages.pages.headline import BY, JUDGE
from stages.pages.settings_table import is_trained_elsewhere
from stages.store.manifest import Manifest
from stages.store.workspace import clock

# for each group of prompts: its name in a sentence, on a lamp and in the chart
PLACES: dict[str, list[str]] = TEXTS["places"]
# groups of prompts that are like nothing that was trained
NEW = ("unseen tasks", "untrained kinds")
NOT_TESTED = "not tested"
# the name of a difference
SFT_OVER_BASE = "sft-base"
LONGEST_PROMPT = 220  # characters of a prompt on the first screen


class Lamp(NamedTuple):
    """The answer to one question: a title, one of good, bad, none and off, a word, a figure, and a command or ''."""

    title: str
    state: str
    word: str
    figure: str
    command: str = ""


class Bar(NamedTuple):
    """A model's rate on one group of prompts."""

    role: str
    title: str
    rate: Interval


class Rates(NamedTuple):
    """The chart of rates: `about` one group of prompts, with a bar for each model."""

    about: str
    bars: list[Bar]


class Step(NamedTuple):
    """A step of the chain: its title, what it made, its time, and one of done, reused, running, waiting, stopped, failed."""

    title: str
    made: str
    time: str
    state: str = "done"


def claim_lamp(title: str, claim: Claim, question: str, over: str = "", **names: str) -> Lamp:
    """Return the lamp of a claim: its answer to a question, and its figure `over` another model. `names`: what the answer
    names. A note stands alone."""
    if claim.note:
        return Lamp(title, claim.state, claim.note, "")
    figure = f"{claim.figure}, over {over}" if over else claim.figure
    return Lamp(title, claim.state, claim.says(question, **names), figure)


def has_control(results: Results) -> bool:
    return "control" in results.models


def policy_stage(nodes: Mapping[str, Manifest]) -> str:
    """Return the stage that trained the evaluated policy, or '' without an evaluation."""
    evaluation = nodes.get("eval")
    return str(evaluation["inputs"]["policy"]["stage"]) if evaluation else ""


def policy_draws(nodes: Mapping[str, Manifest]) -> bool:
    """Return whether the policy was trained on draws of its own."""
    return policy_stage(nodes) in DRAWING


def of_pairs(nodes: Mapping[str, Manifest]) -> bool:
    """Return whether the policy was trained on pairs, or elsewhere: plain SFT on chosen answers can be compared with it."""
    return policy_stage(nodes) == "dpo" or is_trained_elsewhere(nodes)


def new_group(results: Results) -> str | None:
    """Return the group of prompts that are like nothing that was trained, if it is not what the verdict is about."""
    return next((g for g in NEW if g in results.groups and g != results.endpoint), None)


def place(results: Results, taught: str) -> list[str]:
    """Return the names of the prompts that the verdict is about: in a sentence, as a title, and of a chart."""
    if results.primary and results.primary.set:
        return [results.primary.set] * 3
    if taught == "nothing here":
        return PLACES["untaught"]
    return PLACES.get(str(results.endpoint), PLACES["other"])


def lamps(
    results: Results,
    nodes: Mapping[str, Manifest],
    taught: str,
    run: str,
    ship: Claim | None = None,
) -> list[Lamp]:
    """Return a lamp for each question: on what it practised, on new tasks, against its control, what else was asked, and
    whether to ship the policy instead of the model before it. `run`: the command of this run; `ship`: the gate's claim,
    None if nothing was measured of both models."""
    shown, parts, main = list[Lamp](), results.gives_verdict, results.main_difference
    before = results.title_before
    if "learnt" in parts and results.learnt:
        shown += learnt_lamps(results, results.learnt, run)
    shown += [judged_lamp(each) for each in results.judged.values()]
    if "checks" in parts and results.primary:
        practised = claims.change(results.primary, main)
        shown.append(claim_lamp(place(results, taught)[1], practised, "lamp", before))
        if group := new_group(results):
            on_new = claims.change(results.groups[group], main)
            shown.append(claim_lamp(PLACES[group][1], on_new, "lamp", before))
        else:
            shown.append(Lamp("New tasks", "off", NOT_TESTED, ""))
    if has_control(results) or of_pairs(nodes) or policy_draws(nodes):
        shown.append(control_lamp(results, nodes, run))
    if ship:
        shown.append(claim_lamp("Ship?", ship, "ship", before=before))
    return shown


def control_lamp(results: Results, nodes: Mapping[str, Manifest], run: str) -> Lamp:
    if not has_control(results):
        control = "its control" if policy_draws(nodes) else CONTROL
        title = f"{results.policy} over {control}?"
        return Lamp(title, "off", NOT_TESTED, "", f"{run} control=true")
    control = results.control_in_words
    title = f"{results.policy} over {control}?"
    claim = claims.over_control(results)
    if claim is None:
        return Lamp(title, "off", NOT_TESTED, "")
    of_checks = "checks" in results.gives_verdict
    lamp = claim_lamp(title, claim, "control_lamp", control if of_checks else "")
    if claim.word is Word.unknown and not claim.note:
        return lamp._replace(command=f"{run} {JUDGE} 'eval.judged.against=[sft,control]'")
    return lamp


def learnt_lamps(results: Results, learnt: Learnt, run: str) -> list[Lamp]:
    """Return the lamps of held-out preferences: learnt or not, and whether answers are better."""
    claim = claims.learnt(learnt)
    # The sentence above has the figures.
    shown = [Lamp("Your preferences", claim.state, claim.says("learnt_lamp"), "")]
    if not results.judged:
        shown.append(Lamp("Are answers better?", "off", "nobody was asked", "", f"{run} {JUDGE}"))
    return shown


def judged_lamp(judged: JudgedComparison | Waiting) -> Lamp:
    opposed = judged.opposed
    title = f"Against {opposed.title}, by {BY.get(opposed.labeler, opposed.labeler)}"
    if isinstance(judged, Waiting):
        return Lamp(title, "off", "waits for people", f"{judged.waiting:,} comparisons")
    claim = claims.judged(judged)
    return Lamp(title, claim.state, claim.answer, "" if claim.note else claim.figure)


def sentence(
    results: Results, nodes: Mapping[str, Manifest], taught: str, ship: Claim | None = None
) -> str:
    """Return the weakest true sentences on the run, the largest effect first. They name the cause: a method that plain
    SFT on the same answers equals is not named as one. `ship`: the gate's claim, None if nothing was measured of both
    models."""
    if results.rehearsal:
        return f"{results.rehearsal}."
    parts = results.gives_verdict
    if results.learnt and "learnt" in parts:
        return learnt_sentence(results, results.learnt, ship)
    if "judged" in parts and "checks" not in parts:
        clause = judged_clause(results)
        return f"{clause[:1].upper()}{clause[1:]}."
    if not results.primary or "checks" not in parts:
        return results.verdict
    where = place(results, taught)[0]
    lead = sft_sentence(results, results.primary, where)
    clauses = [practised_clause(results, results.primary, nodes, where, after_sft=bool(lead))]
    if group := new_group(results):
        on_new = claims.change(results.groups[group], results.main_difference)
        if not on_new.note:  # the lamp has the note
            clauses.append(on_new.says("new", where=PLACES[group][0]))
    return f"{lead}{'; '.join(clauses)}."


def sft_sentence(results: Results, primary: Group, where: str) -> str:
    """Return the sentence on SFT if it changed more than the policy did after it, else ''."""
    if results.before != "sft" or SFT_OVER_BASE not in primary:
        return ""
    sft = claims.change(primary, SFT_OVER_BASE)
    policy = claims.change(primary, results.main_difference)
    by_sft, by_policy = (
        abs(primary[name].mean) for name in (SFT_OVER_BASE, results.main_difference)
    )
    if sft.note or sft.is_same or not (policy.is_same or by_sft > by_policy):
        return ""
    title = results.models["sft"]
    rates = f"{primary['base'].mean:.0%} to {primary['sft'].mean:.0%}"
    return f"{sft.says('practised', model=title, where=where)}: {rates}. "


def practised_clause(
    results: Results, primary: Group, nodes: Mapping[str, Manifest], where: str, after_sft: bool
) -> str:
    """Return the clause on the prompts of the verdict, with the cause if plain SFT on the same answers was tested."""
    policy = results.policy
    claim = claims.change(primary, results.main_difference)
    if claim.note:
        return f"{claim.note.capitalize()} whether {policy} helped on {where}"
    if after_sft and claim.is_same:
        return claim.says("added", model=policy)
    helped = claim.says("practised", model=policy, where=where)
    if claim.is_better and policy_draws(nodes):
        return draws_clause(results, primary, helped, where)
    if not claim.is_better or not of_pairs(nodes):
        return helped
    if not has_control(results):
        return f"{helped}; whether plain SFT on the chosen answers would have, was not tested"
    of_checks = nodes.get("label", {}).get("settings", {}).get("labeler") == "verifier"
    answers = "its own right answers" if of_checks else "the chosen answers"
    over_control = claims.change(primary, OVER_CONTROL)
    return over_control.says("over_control", model=policy, where=where, answers=answers)


def draws_clause(results: Results, primary: Group, helped: str, where: str) -> str:
    """Return the clause on a policy that helped and learnt from draws, with its control if that was tested."""
    if not has_control(results):
        return f"{helped}; whether its best draws alone would have, was not tested"
    over_control = claims.change(primary, OVER_CONTROL)
    control = results.control_in_words
    return over_control.says("over_draws", model=results.policy, where=where, control=control)


def learnt_sentence(results: Results, learnt: Learnt, ship: Claim | None) -> str:
    """Return the sentence on preferences: learnt or not, and worse in its answers or not, more than by plain SFT, and
    what was said of the answers."""
    but = ""
    if ship and ship.word is Word.worse:
        but = f", but is {ship.says('ship', before=results.title_before)}"
    clauses = [claims.learnt_clause(results, learnt, but)]
    over_control = claims.preferred_over_control(results)
    if over_control and not over_control.note:
        control = results.control_in_words
        clauses.append(over_control.says("over_plain", model=results.policy, control=control))
    if results.judged:  # if nobody was asked, a lamp says so
        clauses.append(judged_clause(results))
    return f"{'; '.join(clauses)}."


def judged_clause(results: Results) -> str:
    """Return the clause on the first comparison of answers."""
    judged = next(iter(results.judged.values()))
    if isinstance(judged, Waiting):
        return f"{judged.waiting:,} comparisons of answers wait for people"
    by = BY.get(judged.opposed.labeler, judged.opposed.labeler)
    title = judged.opposed.title
    others = title if title == REFERENCES else f"{title}'s"
    return f"by {by}, {claims.judged(judged).says('judged_answers', others=others)}"


def rates(results: Results, taught: str) -> list[Rates]:
    """Return the chart of rates: on the prompts of the verdict, and on new ones; or of held-out pairs."""
    if "checks" not in results.gives_verdict:
        if not results.learnt:
            return []
        claimed = results.learnt.claimed
        about = f"gained more on the better answer · {claimed.pairs:,} pairs"
        return [Rates(about, bars(results, claimed.ratio))]
    return [
        Rates(f"{name} · {row.prompts:,} prompts", bars(results, row.intervals))
        for name, row in rows_by_place(results, taught).items()
    ]


def rates_in_any_form(results: Results, taught: str) -> list[Rates]:
    """Return the same chart for answers that contain the reference in any form; empty without references."""
    return [
        Rates(
            f"{name} · {row.containing.prompts:,} prompts", bars(results, row.containing.intervals)
        )
        for name, row in rows_by_place(results, taught).items()
        if row.containing
    ]


def rows_by_place(results: Results, taught: str) -> dict[str, Group]:
    """Return the rates on the prompts of the verdict, and on new ones, by the name of the prompts."""
    if results.primary is None:
        return {}
    rows = {place(results, taught)[2]: results.primary}
    if group := new_group(results):
        rows[PLACES[group][2]] = results.groups[group]
    return rows


def bars(results: Results, intervals: Intervals) -> list[Bar]:
    """Return a bar for each model that has a rate."""
    titles = results.models.items()
    return [Bar(role, title, intervals[role]) for role, title in titles if role in intervals]


def example(answers: Mapping[str, Sequence[ShownAnswer]]) -> ShownAnswer | None:
    """Return the shortest prompt under the first heading that has one short enough for the first screen."""
    for prompts in answers.values():
        shortest = min(prompts, key=prompt_length)
        if prompt_length(shortest) <= LONGEST_PROMPT:
            return shortest
    return None


def prompt_length(shown: ShownAnswer) -> int:
    """Return the characters of a prompt."""
    return sum(len(message["content"]) for message in shown.prompt.messages)


def chain(nodes: Mapping[str, Manifest]) -> list[Step]:
    """Return the steps of the chain in the order of their stages, those of one stage together."""
    shown = list[Step]()
    for stage, (title, metric, unit) in STEPS.items():
        of_stage = {
            node["fingerprint"]: node
            for name, node in nodes.items()
            if step_of(name, node["stage"]) == stage
        }
        if not of_stage:
            continue
        seconds = sum(node["wall_seconds"] for node in of_stage.values())
        amount = next(iter(of_stage.values()))["metrics"].get(metric)
        shown.append(Step(title, amount_in_words(amount, unit), clock(seconds)))
    return shown


def step_of(name: str, stage: str) -> str:
    """Return the step of a node by its name and stage: `control` for the training that DPO is compared with, and
    `control_draws` for that of an objective that draws."""
    if "control" not in name:
        return stage
    if stage in DRAWING:
        return "control_draws"
    return "control" if stage == "sft" else stage


def amount_in_words(amount: Any, unit: str) -> str:
    """Return what a step made in words: `134.5 M parameters`, `198 pairs`, `35% right`."""
    if not isinstance(amount, int | float):
        return ""
    if unit.startswith("%"):
        return f"{amount:.0%}{unit[1:]}"
    return f"{amount / 1e6:.1f} M {unit}" if amount >= 1e6 else f"{amount:,.0f} {unit}".strip()


def facts(
    results: Results,
    nodes: Mapping[str, Manifest],
    seconds: float,
    seeds: int,
    why: Diagnosis | None,
) -> list[str]:
    """Return the facts in one line: time, machine, money, seeds, endings, and findings out of their range. `seeds`: the
    number of seeds that were trained."""
    spent = [
        calls["money"]
        for node in nodes.values()
        for calls in node["metrics"].get("calls", {}).values()
        if "money" in calls
    ]
    # of a processor the number of cores; of a GPU its name
    machine, is_processor, _ = str(nodes["eval"]["processor"]).partition(" x ")
    shown = [f"{clock(seconds)} minutes", f"{machine} cores" if is_processor else machine]
    shown += [f"{sum(spent):,.2f} spent"] if spent else []
    if seeds:
        shown.append("one seed" if seeds == 1 else f"{seeds} seeds")
    if results.behaviour.mean_tokens:
        shown.append(f"{results.behaviour.stop_rate['policy']:.1%} ended")
    if why:
        odd, count = len(why.out_of_range), len(why.out_of_range + why.in_range)
        shown.append(f"{odd}/{count} measurements unusual")
    return shown


def next_for_files(nodes: Mapping[str, Manifest]) -> str:
    """Return the command for a file of the user's own; '' if this run was about one."""
    of_files = any(node["stage"] == "source" for node in nodes.values())
    labels = nodes.get("label", {}).get("settings", {}).get("labeler")
    trained = any(node["stage"] in POLICY_STAGES for node in nodes.values())
    if of_files or labels == "dataset" or not trained:
        return ""
    return shlex.join([*program(), "recipe=from_preferences", "data.path=FILE"])
