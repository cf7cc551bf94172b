"""The first screen of a report: one sentence, one chart of rates, a lamp for each question, one prompt before and after,
the chain and the facts. A question that was not asked says so, with the command that asks it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.config.blocks.evaluation import REFERENCES
from stages.config.schema import POLICY_STAGES
from stages.evaluation.diagnosis.diagnose import Diagnosis
from stages.evaluation.intervals import Interval
from stages.evaluation.pair_groups import moved_nothing
from stages.pages.example_answers import ShownAnswer
from stages.pages.glossary import TEXTS
from stages.pages.headline import BY, HALF, JUDGE, Results
from stages.store.manifest import Manifest
from stages.store.numbers import points
from stages.store.workspace import clock

# for each group of prompts: its name in a sentence, on a lamp and in the chart
PLACES: dict[str, list[str]] = TEXTS["places"]
# groups of prompts that are like nothing that was trained
NEW = ("unseen tasks", "untrained kinds")
# for each stage of the chain: its title, and the metric that is shown with its unit
STEPS: dict[str, list[str]] = TEXTS["steps"]
CONTROL = "SFT on chosen"  # the title of the control on this page
NOT_TESTED = "not tested"
# What a labeler says of the policy's answers, beside those of another model
EFFECTS: dict[str, str] = TEXTS["effects"]
STATES = ("better", "worse", "no change")
MODEL_NUMBERS = re.compile(r" \d+/\d+/\d+$")  # family, model and stepping of a processor
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


def effect(delta: Interval) -> str:
    """Return good, bad or none for a difference."""
    return delta.word("good", "bad", "none")


def difference_lamp(title: str, row: Mapping[str, Any], other: str) -> Lamp:
    """Return the lamp of a difference of the policy to the `other` model."""
    delta = Interval(**row)
    figure = f"{points(delta.mean)} over {other} ({delta.bounds()})"
    return Lamp(title, effect(delta), delta.word(*STATES), figure)


def has_control(results: Results) -> bool:
    return "control" in results["models"]


def of_pairs(nodes: Mapping[str, Manifest]) -> bool:
    """Return whether the policy was trained on pairs, which plain SFT on their chosen answers can be compared with."""
    return any(node["stage"] in ("dpo", "examine") for node in nodes.values())


def new_group(results: Results) -> str | None:
    """Return the group of prompts that are like nothing that was trained, if it is not what the verdict is about."""
    return next((g for g in NEW if g in results["groups"] and g != results["endpoint"]), None)


def place(results: Results, taught: str) -> list[str]:
    """Return the names of the prompts that the verdict is about: in a sentence, as a title, and of a chart."""
    if own := results["primary"]["set"]:
        return [own, own, own]
    if taught == "nothing here":
        return PLACES["untaught"]
    return PLACES.get(results["endpoint"], PLACES["other"])


def lamps(results: Results, nodes: Mapping[str, Manifest], taught: str, run: str) -> list[Lamp]:
    """Return a lamp for each question: on what it practised, on new tasks, against plain SFT, and what else was asked.
    `run`: the command of this run."""
    shown, parts, main = list[Lamp](), results["gives_verdict"], results["main_difference"]
    before = results["models"][results["before"]]
    if "learnt" in parts:
        shown += learnt_lamps(results, run)
    shown += [judged_lamp(results, each) for each in results["judged"].values()]
    if "checks" in parts:
        shown.append(difference_lamp(place(results, taught)[1], results["primary"][main], before))
        if group := new_group(results):
            shown.append(difference_lamp(PLACES[group][1], results["groups"][group][main], before))
        else:
            shown.append(Lamp("New tasks", "off", NOT_TESTED, ""))
    if of_pairs(nodes):
        shown.append(control_lamp(results, run))
    return shown


def control_lamp(results: Results, run: str) -> Lamp:
    title = f"{results['models']['policy']} or plain SFT?"
    if not has_control(results):
        return Lamp(title, "off", NOT_TESTED, "", f"{run} control=true")
    if "checks" in results["gives_verdict"]:
        return difference_lamp(title, results["primary"]["policy-control"], CONTROL)
    shares = results["learnt"].get("ratio", {})
    if "control" not in shares:
        return Lamp(title, "off", NOT_TESTED, "")
    delta = Interval(**shares["policy-control"])
    word = delta.word("more", "less", "no clear difference")
    figure = f"{shares['policy']['mean']:.0%} of pairs for {shares['control']['mean']:.0%}"
    return Lamp(title, effect(delta), word, figure)


def learnt_lamps(results: Results, run: str) -> list[Lamp]:
    """Return the lamps of held-out preferences: learnt or not, and whether answers are better."""
    learnt = results["learnt"]
    ratio = Interval(**learnt["ratio"]["policy"])
    above = Interval(ratio.mean - HALF, ratio.low - HALF, ratio.high - HALF)
    word = learnt["note"] or above.word("learnt", "learnt the opposite", "not clearly learnt")
    state = "none" if learnt["note"] else effect(above)
    if moved_nothing(learnt):
        state, word = "none", "moved nothing"
    figure = f"{ratio.mean:.0%} of {learnt['of']} ({ratio.low:.0%} to {ratio.high:.0%})"
    shown = [Lamp("Your preferences", state, word, figure)]
    if not results["judged"]:
        shown.append(Lamp("Are answers better?", "off", "nobody was asked", "", f"{run} {JUDGE}"))
    return shown


def judged_lamp(results: Results, judged: Mapping[str, Any]) -> Lamp:
    title = f"Against {judged['title']}, by {BY.get(judged['labeler'], judged['labeler'])}"
    if "waiting" in judged:
        return Lamp(title, "off", "waits for people", f"{judged['waiting']:,} comparisons")
    state = {"better": "good", "worse": "bad"}.get(judged["effect"], "none")
    return Lamp(title, state, judged["effect"], f"wins {Interval(**judged['win_rate']).share()}")


def sentence(results: Results, nodes: Mapping[str, Manifest], taught: str) -> str:
    """Return the weakest true sentence on the run. It names the cause: a method that plain SFT on the same answers
    equals is not named as one."""
    parts, policy = results["gives_verdict"], results["models"]["policy"]
    if "learnt" in parts:
        return f"{learnt_clause(results, policy)}; {judged_clause(results, policy)}."
    if "judged" in parts and "checks" not in parts:
        clause = judged_clause(results, policy)
        return f"{clause[:1].upper()}{clause[1:]}."
    if "checks" not in parts:
        return str(results["verdict"])
    clauses = [practised_clause(results, nodes, taught)]
    if group := new_group(results):
        delta = Interval(**results["groups"][group][results["main_difference"]])
        clauses.append(
            delta.word(
                *(f"{word} on {PLACES[group][0]}" for word in ("better", "worse", "nothing more"))
            )
        )
    return f"{'; '.join(clauses)}."


def practised_clause(results: Results, nodes: Mapping[str, Manifest], taught: str) -> str:
    """Return the clause on the prompts of the verdict, with the cause if plain SFT on the same answers was tested."""
    policy, primary = results["models"]["policy"], results["primary"]
    where, row = place(results, taught)[0], primary[results["main_difference"]]
    if primary["note"]:
        return f"{primary['note'].capitalize()} whether {policy} helped on {where}"
    helped = effect(Interval(**row))
    if helped == "none":
        return f"{policy} made no measurable change on {where}"
    if helped == "bad":
        return f"{policy} made it worse on {where}"
    if not of_pairs(nodes):
        return f"{policy} helped on {where}"
    if not has_control(results):
        return f"{policy} helped on {where}; whether plain SFT on the chosen answers would have, was not tested"
    more = effect(Interval(**primary["policy-control"]))
    if more == "good":
        return f"{policy} helped on {where}, and more than plain SFT on the chosen answers"
    of_checks = nodes.get("label", {}).get("settings", {}).get("labeler") == "verifier"
    answers = "its own right answers" if of_checks else "the chosen answers"
    less = f"{policy} no more than plain SFT on them"
    if more == "bad":
        less = f"plain SFT on them helped more than {policy}"
    return f"Training on {answers} helped on {where}; {less}"


def learnt_clause(results: Results, policy: str) -> str:
    learnt = results["learnt"]
    ratio = Interval(**learnt["ratio"]["policy"])
    if learnt["note"]:
        return f"Too few held-out rows to say whether {policy} learnt the preferences"
    if ratio.low > HALF:
        learnt_them = (
            f"{policy} learnt these preferences: {ratio.mean:.0%} of {learnt['of']} are in order"
        )
        return f"{learnt_them}{beside_control(learnt)}"
    word = "learnt the opposite of" if ratio.high < HALF else "did not clearly learn"
    return f"{policy} {word} these preferences"


def beside_control(learnt: Mapping[str, Any]) -> str:
    """Return what plain SFT on the chosen answers learnt beside a policy that learnt; '' if it was not trained."""
    if "control" not in learnt["ratio"]:
        return ""
    plain = (
        f"plain SFT on the chosen answers puts {learnt['ratio']['control']['mean']:.0%} in order"
    )
    delta = Interval(**learnt["ratio"]["policy-control"])
    return f" ({plain}, {delta.word('fewer', 'more', 'which is not measurably different')})"


def judged_clause(results: Results, policy: str) -> str:
    """Return the clause on the first comparison of answers."""
    for judged in results["judged"].values():
        by = BY.get(judged["labeler"], judged["labeler"])
        title = judged["title"]
        others = title if title == REFERENCES else f"{title}'s"
        if "waiting" in judged:
            return f"{judged['waiting']:,} comparisons of answers wait for people"
        return f"by {by}, {EFFECTS[judged['effect']].format(others=others)}"
    return "whether its answers are better, nobody was asked"


def rates(results: Results, taught: str) -> list[Rates]:
    """Return the chart of rates: on the prompts of the verdict, and on new ones; or of held-out pairs in order."""
    if "checks" not in results["gives_verdict"]:
        ratio = results["learnt"].get("ratio", {}) if results["learnt"] else {}
        about = f"held-out pairs in order · {results['learnt']['pairs']}" if ratio else ""
        return [Rates(about, bars(results, ratio))] if ratio else []
    return [
        Rates(f"{name} · {row['prompts']:,} prompts", bars(results, row))
        for name, row in rows_by_place(results, taught).items()
    ]


def rates_in_any_form(results: Results, taught: str) -> list[Rates]:
    """Return the same chart for answers that contain the reference in any form; empty without references."""
    rows = {
        name: row["containing"]
        for name, row in rows_by_place(results, taught).items()
        if row["containing"]
    }
    return [
        Rates(f"{name} · {row['prompts']:,} prompts", bars(results, row))
        for name, row in rows.items()
    ]


def rows_by_place(results: Results, taught: str) -> dict[str, Mapping[str, Any]]:
    """Return the rates on the prompts of the verdict, and on new ones, by the name of the prompts."""
    if results["primary"] is None:
        return {}
    rows = {place(results, taught)[2]: results["primary"]}
    if group := new_group(results):
        rows[PLACES[group][2]] = results["groups"][group]
    return rows


def bars(results: Results, row: Mapping[str, Any]) -> list[Bar]:
    """Return a bar for each model that has a rate."""
    titles = results["models"].items()
    return [Bar(role, title, Interval(**row[role])) for role, title in titles if role in row]


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
    """Return the step of a node by its name and stage: `control` for the training that DPO is compared with."""
    return "control" if stage == "sft" and "control" in name else stage


def amount_in_words(amount: Any, unit: str) -> str:
    """Return what a step made in words: `134.5 M parameters`, `198 pairs`, `35% right`."""
    if not isinstance(amount, int | float):
        return ""
    if unit.startswith("%"):
        return f"{amount:.0%}{unit[1:]}"
    return f"{amount / 1e6:.1f} M {unit}" if amount >= 1e6 else f"{amount:,.0f} {unit}".strip()


def facts(
    results: Results, nodes: Mapping[str, Manifest], seconds: float, why: Diagnosis | None
) -> list[str]:
    """Return the facts in one line: time, machine, money, endings, and findings out of their range."""
    spent = [
        calls["money"]
        for node in nodes.values()
        for calls in node["metrics"].get("calls", {}).values()
        if "money" in calls
    ]
    processor = MODEL_NUMBERS.sub("", str(nodes["eval"]["processor"])).replace(" x ", " cores, ")
    shown = [f"{clock(seconds)} minutes", processor]
    shown += [f"{sum(spent):,.2f} spent"] if spent else []
    if results["mean_tokens"]:
        shown.append(f"{results['stop_rate']['policy']:.1%} ended")
    if why:
        odd, count = len(why.out_of_range), len(why.out_of_range + why.in_range)
        shown.append(f"{odd}/{count} findings")
    return shown


def next_for_files(nodes: Mapping[str, Manifest]) -> str:
    """Return the command for a file of the user's own; '' if this run was about one."""
    of_files = any(node["stage"] == "source" for node in nodes.values())
    labels = nodes.get("label", {}).get("settings", {}).get("labeler")
    trained = any(node["stage"] in POLICY_STAGES for node in nodes.values())
    if of_files or labels == "dataset" or not trained:
        return ""
    return "python run.py recipe=from_preferences data.path=FILE"
