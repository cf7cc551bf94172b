"""Stage `eval`: did it help? It compares all models on the same held-out prompts and pairs, with intervals.

A verdict has up to three parts, all of which are printed. *Checks*: policy minus SFT in the share of prompts that pass
all checks, on one primary endpoint. *Learnt*: the share of held-out pairs whose chosen answer the policy favours more
than SFT does. *Judged*: the policy's win rate by a labeler. With the user's own preferences, the parts about them come
first. All other figures have an interval and no verdict."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.curation.answer_rules import is_repetitive
from stages.evaluation import (
    claims,
    coverage,
    judged,
    learnt,
    likelihood,
    measures,
    outcomes,
    retention,
    rounds,
)
from stages.evaluation.asked import PROMPT_SOURCES, prompts_of_set
from stages.evaluation.checked import Checked
from stages.evaluation.extra_sections import measure_sections
from stages.evaluation.outcomes import Answers, Outcome, Table, tabulate
from stages.evaluation.results import (
    FILE,
    Behaviour,
    JudgedComparison,
    Learnt,
    OpenPrompts,
    Results,
    Waiting,
    write_results,
)
from stages.models.loading import resolve_device
from stages.store.manifest import manifest_of
from stages.store.records import Example, Pair, Records, save
from stages.store.single_completions import UnpairedPreference
from stages.store.splits import draw_order
from stages.store.typed_json import encode, encode_fields
from stages.store.workspace import StageDir

# Titles of the sets of prompts without checks. A verdict without checks is about the first set in this order.
SETS_WITHOUT_CHECKS = {
    "the prompts of held-out pairs": "answer_held_out",
    "your own prompts": "answer_judged",
    "prompts without checks": "answer",
}


class AnsweredSet(NamedTuple):
    """A set of prompts with the answers of every model to each of them."""

    prompts: list[Example]
    answers: Answers


def run(cfg: Eval, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `results.json` (models, rates, differences, held-out pairs, judged comparisons, verdict) and
    `outcomes.parquet` (pass or fail for every answer to a prompt with checks) and `measures.parquet` (for the gate).
    Raise UserError if no prompt and no held-out pair is left to evaluate."""
    is_random = "base" in inputs and manifest_of(inputs["base"])["config"]["random_init"]
    if is_random:
        out.warn(
            "the base has random weights, as with scale=toy: the verdict says nothing of your data."
        )
    sets, left_out = read_answered_sets(cfg, inputs, out)
    checked = check_unseen_answers(cfg, inputs, sets, out)
    unchecked = tabulate_without_checks(sets)
    pairs: Learnt | None = None
    pair_measures = list[measures.Measure]()
    if "pairs" in inputs or "unpaired" in inputs:
        pairs, pair_measures = learnt.learnt_results(cfg, inputs, outcomes.before(cfg.models), out)
    comparisons, win_measures = judged.judged_results(cfg, inputs)
    if "answer_judged" in sets:
        seen_ids = prompt_ids_of_run(inputs).intersection(
            prompt.id for prompt in sets["answer_judged"].prompts
        )
        if seen_ids:
            out.warn(
                f"{len(seen_ids)} prompts of eval.judged.source are also in the data or the pairs, and count."
            )
    parts = parts_of_verdict(
        checked, pairs, comparisons, own_preferences="answer_held_out_policy" in inputs
    )
    if not parts:
        raise no_verdict_error(sets, inputs)

    answers: Answers = {role: {} for role in cfg.models}
    for answered in sets.values():
        for role, of_role in answered.answers.items():
            answers[role] |= of_role
    # the answers that the verdict is about
    shown_table = checked.primary
    shown_on = checked.endpoint
    if unchecked and parts[0] != "checks":
        shown_on, shown_table = next(iter(unchecked.items()))
    likelihood_table = (
        checked.verdict_table if shown_table is None or parts[0] == "checks" else shown_table
    )
    in_draw_order = sorted(likelihood_table.prompts, key=lambda prompt: draw_order(prompt.id))
    likelihood_prompts = in_draw_order[: cfg.likelihood_prompts]
    retained, gate_measures = retention.claims(cfg, inputs, checked.everything, answers, out)
    titles = cfg.models
    differences = outcomes.differences(titles)
    of_checks = checked.results(answers, cfg)
    behaviour = Behaviour({}, {}, {})
    endings = ""
    if shown_table is not None:  # length and endings of the answers that the verdict is about
        behaviour = measure_answers(shown_table, answers)
        stopped = shown_table.estimate(shown_table.stopped)
        ended = outcomes.means_and_differences(stopped, shown_table.roles, cfg.confidence)
        endings = claims.endings_clause(ended, titles, outcomes.before(titles))
    kl, references = likelihood.score(cfg, inputs, likelihood_prompts, answers, out)
    by_round = rounds.compare_rounds(inputs, cfg.confidence, trained_prompt_ids(inputs))
    further = measure_sections(cfg, inputs, out)
    tables = dict(unchecked)
    if checked.endpoint and checked.primary is not None:
        tables[checked.endpoint] = checked.primary
    covered = coverage.measure_coverage(cfg, inputs, tables, checked.endpoint)
    further_measures = list[measures.Measure]()
    sections: dict[str, object] = {
        rounds.SECTION: by_round,
        coverage.SECTION: covered,
    }
    for section in further:
        sections[section.name] = section.figures
        further_measures += section.measures
    cautions = learnt.cautions(titles, outcomes.before(titles), behaviour, endings, kl)
    results = Results(
        models=titles,
        before=outcomes.before(titles),
        main_difference=outcomes.main_difference(titles),
        differences={name: f"{titles[a]} − {titles[b]}" for name, (a, b) in differences.items()},
        decoding={"max_new_tokens": cfg.max_new_tokens},
        **vars(of_checks),
        behaviour=behaviour,
        endings=endings,
        shown_on=shown_on,
        open={
            name: OpenPrompts(len(table.prompts), measure_answers(table, answers))
            for name, table in unchecked.items()
        },
        learnt=pairs,
        judged=comparisons,
        gives_verdict=parts,
        kl=kl,
        references=references,
        retention=retained,
        sections={name: encode(figures) for name, figures in sections.items() if figures},
        cautions=cautions,
        verdict="",
    )
    # Generated tasks measure a model with random weights, too, once SFT has taught it the tasks.
    if is_random and (parts[0] != "checks" or checked.is_from_files):
        results = claims.rehearsed(results)
    results = replace(results, verdict=claims.verdict(results))

    save(out / "outcomes.parquet", checked.outcomes(), Outcome)
    gate_measures += answer_measures(checked, unchecked, answers)
    # other held-out pairs are of each run's own samples
    if parts[0] == "learnt":
        gate_measures += pair_measures
    save(
        out / measures.FILE,
        [*gate_measures, *win_measures, *further_measures],
        measures.Measure,
    )
    write_results(out / FILE, results)
    rates: dict[str, Any] = {"pass_rate": {}, "delta": {}}
    if results.primary:
        for role in titles:
            rates["pass_rate"][role] = results.primary[role].mean
        for name in differences:
            rates["delta"][name] = encode(results.primary[name])
    names = ("mean_tokens", "stop_rate", "kl", "references", "learnt", "judged", "verdict")
    content = encode_fields(results)
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "prompts_left_out": left_out,
        **rates,
        **{name: content[name] for name in names},
        "summary": results.verdict,
    }


def no_verdict_error(sets: dict[str, AnsweredSet], inputs: dict[str, Path]) -> UserError:
    """Return the error for an evaluation in which nothing shows if training helped."""
    ids = set[str]()
    for answered in sets.values():
        ids.update(prompt.id for prompt in answered.prompts)
    key = "unpaired" if "unpaired" in inputs else "pairs"
    return UserError(
        f"none of the {len(ids)} prompts can show if training helped: {len(ids & trained_prompt_ids(inputs))} are also in "
        "the training pairs, the others have no checks, and no pair is held out. Raise "
        f"data.tasks.test or {key}.validation_fraction, or add test prompts to data.sources."
    )


def answer_measures(
    checked: Checked, unchecked: dict[str, Table], answers: Answers
) -> list[measures.Measure]:
    """Return the measures of each answer of every model, by which the gate compares two runs or two models."""
    passes = dict[str, Table]()
    if checked.primary:
        passes[measures.PASSES] = checked.primary
    for name, table in checked.outside.items():
        if table is not checked.primary:
            passes[f"{measures.PASSES} of {name}"] = table
    tables = [checked.everything, *checked.outside.values(), *unchecked.values()]
    rows = list[measures.Measure]()
    for role, of_role in answers.items():
        rows += measures.measure_answers(tables, passes, of_role, role)
    return rows


def parts_of_verdict(
    checked: Checked,
    pairs: Learnt | None,
    comparisons: dict[str, JudgedComparison | Waiting],
    own_preferences: bool,
) -> list[str]:
    """Return the verdict's parts, the most important first: what is about the user's own preferences, if there are any."""
    if own_preferences and checked.is_from_files:
        by_importance = ["learnt", "judged", "checks"]
    elif own_preferences:
        by_importance = ["learnt", "judged"]
    elif checked.endpoint or comparisons:
        by_importance = ["checks", "judged"]
    else:
        by_importance = ["learnt"]
    parts = {"checks": checked.endpoint, "learnt": pairs, "judged": comparisons}
    return [name for name in by_importance if parts[name]]


def measure_answers(table: Table, answers: Answers) -> Behaviour:
    """Return by role the mean tokens, the shares of answers that end by themselves and that loop and, if some answers
    have thoughts, their share and the mean tokens of a thought."""
    candidates = [answers[role][prompt.id] for prompt in table.prompts for role in table.roles]
    shape = table.tokens.shape
    loops = np.reshape([is_repetitive(candidate.answer) for candidate in candidates], shape)
    thinks = np.reshape([candidate.has_thought for candidate in candidates], shape)
    figures = Behaviour(
        mean_tokens=table.mean(table.tokens),
        stop_rate=table.mean(table.stopped),
        loops=table.mean(loops),
    )
    if thinks.any():
        thought_tokens = np.reshape(
            [candidate.n_tokens - candidate.length for candidate in candidates], shape
        )
        per_thought = thought_tokens.sum(0) / np.maximum(1, thinks.sum(0))
        figures = replace(
            figures,
            thoughts=table.mean(thinks),
            thought_tokens=dict(zip(table.roles, map(float, per_thought), strict=True)),
        )
    return figures


def trained_prompt_ids(inputs: dict[str, Path]) -> set[str]:
    """Return the prompt ids of all pairs or unpaired labels that the models were trained on."""
    label_types: dict[str, Any] = {"pairs": Pair, "unpaired": UnpairedPreference}
    ids = set[str]()
    for input_name, folder in inputs.items():
        stage = input_name.partition("_")[0]
        if stage in label_types:
            ids.update(Records(folder / f"{stage}.parquet", label_types[stage]).column("prompt_id"))
    return ids


def prompt_ids_of_run(inputs: dict[str, Path]) -> set[str]:
    """Return the prompt ids of the data, in any split, and of the preferences."""
    return trained_prompt_ids(inputs).union(
        Records(inputs["data"] / "examples.parquet", Example).column("id")
    )


def check_unseen_answers(
    cfg: Eval, inputs: dict[str, Path], sets: dict[str, AnsweredSet], out: StageDir
) -> Checked:
    """Check the answers to prompts with checks that every model answered and nothing was trained on. A prompt of a
    labelled set is also left out if the data contains it, in any split."""
    no_answers = AnsweredSet([], {role: {} for role in cfg.models})
    tables = dict[str, Table]()
    for name, find_seen_ids in (
        ("answer", trained_prompt_ids),
        ("answer_outside", prompt_ids_of_run),
    ):
        answered = sets.get(name, no_answers)
        seen_ids = find_seen_ids(inputs) if answered.prompts else set()
        checked_prompts = [prompt for prompt in answered.prompts if prompt.checks]
        unseen = [prompt for prompt in checked_prompts if prompt.id not in seen_ids]
        if len(unseen) < len(checked_prompts):
            out.warn(
                f"{len(checked_prompts) - len(unseen)} test prompts do not count: they are also in the data or the pairs."
            )
        tables[name] = tabulate(unseen, answered.answers)
    return Checked(tables["answer"], tables["answer_outside"].by("task"))


def tabulate_without_checks(sets: dict[str, AnsweredSet]) -> dict[str, Table]:
    """Tabulate length and endings of the answers to prompts without checks, by the set's title."""
    tables = dict[str, Table]()
    for title, name in SETS_WITHOUT_CHECKS.items():
        if name in sets:
            without_checks = [prompt for prompt in sets[name].prompts if not prompt.checks]
            if without_checks:
                tables[title] = tabulate(without_checks, sets[name].answers)
    return tables


def read_answered_sets(
    cfg: Eval, inputs: dict[str, Path], out: StageDir
) -> tuple[dict[str, AnsweredSet], int]:
    """Read by name the sets of prompts that every model answered, and count the other prompts. Raise UserError if a
    set has none left."""
    sets = dict[str, AnsweredSet]()
    total_left_out = 0
    for name in PROMPT_SOURCES:
        if f"{name}_policy" not in inputs:
            continue
        folders = {role: inputs[f"{name}_{role}"] for role in cfg.models}
        answers, left_out = outcomes.read_answers(folders)
        message = f"{left_out} prompts are too long for one of the models and do not count"
        if not answers["policy"]:
            raise UserError(f"{message}, so that no prompt is left. Lower answer.max_new_tokens.")
        if left_out:
            out.warn(f"{message}.")
        total_left_out += left_out
        by_id = {prompt.id: prompt for prompt in prompts_of_set(name, inputs)}
        sets[name] = AnsweredSet([by_id[prompt_id] for prompt_id in answers["policy"]], answers)
    return sets, total_left_out
