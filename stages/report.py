"""Stage `report`: one self-contained page on the result and its causes, and one page on the labels.

It reads only its input nodes, and escapes text that a model wrote. Empty sections are left out."""

import importlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stages.config.schema import Report
from stages.config.stage_record import LINEAGE
from stages.config.stage_table import DRAWING, POLICY_STAGES, STAGES
from stages.evaluation import claims, coverage, noninferiority, rounds
from stages.evaluation.claims import Claim
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import gather_evidence
from stages.evaluation.gated_groups import deciding_groups, group_lines
from stages.evaluation.outcomes import arms
from stages.evaluation.results import Behaviour, Results
from stages.pages import (
    all_answers,
    charts,
    extra_sections,
    first_screen,
    glossary,
    label_page,
    plots,
    seeds,
    settings_table,
)
from stages.pages.environment import environment
from stages.pages.example_answers import (
    JudgedPrompts,
    ShownAnswer,
    changed_words,
    read_answered,
    read_comparisons,
    side_by_side,
    strips,
)
from stages.pages.headline import JUDGE, Headline, next_steps, run_command, uses_of_model
from stages.pages.seeds import SeedRun
from stages.pages.settings_table import learns
from stages.store.manifest import Manifest, command_of, manifest_of
from stages.store.records import Candidate, Pair, load
from stages.store.sealed_json import load_json
from stages.store.typed_json import encode_fields
from stages.store.workspace import StageDir, read_curves

# differences shown after the verdict's own and those of arms
SHOWN_AFTER_ARMS = ("policy-control", "control-sft", "sft-base")
MOST_DIFFERENCES = 4  # more make a table that is wider than a page
LENGTH_BOUNDS = (0, 2, 4, 8, 16, 32, 64, 128, 256)  # of the bars of answers' lengths, in tokens
TOP_OF_PAGE = ""  # as a section of warnings
# The section that shows a stage's warnings, folded. Warnings of the evaluation stand at the top of the page, because
# they change how the verdict is read.
WARNED_IN = {name: stage.section for name, stage in STAGES.items()}


@dataclass(frozen=True)
class Evaluated:
    """What the report shows of its evaluations, each file read once. `runs`: of all seeds, the report's own first;
    `answered`: the prompts of each set of answers; `comparisons`: the judged ones, by opponent."""

    runs: list[SeedRun]
    answered: dict[str, list[ShownAnswer]]
    comparisons: dict[str, JudgedPrompts]

    @classmethod
    def read(cls, inputs: dict[str, Path], nodes: dict[str, Manifest]) -> Self:
        runs = seeds.read_runs(inputs, nodes)
        results = runs[0].results
        answered = read_answered(inputs, results.models)
        return cls(runs, answered, read_comparisons(inputs, results))

    @property
    def results(self) -> Results:
        """The results of the report's own seed."""
        return self.runs[0].results


def run(cfg: Report, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `report.html` and `answers.html`, if there are labels `labels.html`, and with several seeds `seeds.json`."""
    if "eval" not in inputs:
        return write_page_of_extra(cfg, inputs, out)
    inputs = dict(sorted(inputs.items(), key=is_of_another_seed))
    nodes = {name: manifest_of(folder) for name, folder in inputs.items()}
    evaluated = Evaluated.read(inputs, nodes)
    results = evaluated.results
    page = read_template_values(cfg, inputs, nodes, evaluated)
    why = page["why"]
    env = environment()
    contents = glossary.contents(
        sentence_by_section(page, nodes, env.filters["duration"]),
        results.gives_verdict,
        helped=why is None or why.helped,
    )
    html = env.get_template("page.html.jinja").render(
        page, contents=contents, warnings=warnings_by_section(nodes, [*contents])
    )
    (out / "report.html").write_text(html, encoding="utf-8")
    answers_html = all_answers.render_answers(
        evaluated.answered, evaluated.comparisons, evaluated.runs[0].measures, inputs, results
    )
    (out / all_answers.PAGE).write_text(answers_html, encoding="utf-8")
    over_seeds = page["over_seeds"]
    figures_over_seeds = None
    if over_seeds:
        figures_over_seeds = encode_fields(over_seeds)
        content = json.dumps(figures_over_seeds, indent=1)
        (out / seeds.FILE).write_text(content, encoding="utf-8")
    if "label" in inputs:
        (out / label_page.PAGE).write_text(label_page.page(inputs["label"]), encoding="utf-8")
    return {
        "verdict": results.verdict,
        "by_seed": seeds.sentence_by_seed(over_seeds, page["headline"].seeds),
        "over_seeds": figures_over_seeds,
        "bytes": len(html.encode()),
        "next_command": next_command(page),
        "summary": page["sentence"],
    }


def next_command(page: dict[str, Any]) -> str | None:
    """Return the first command among the next steps that can be typed as it is, else the first use of the model. None
    if nothing was trained here, or there is no such command."""
    for _, command in page["steps"]:
        if command and JUDGE not in command:
            return str(command)
    is_trained = page["runs"][0].seed is not None
    uses = uses_of_model(run_command(page["origin"]))
    return uses[0][1] if is_trained and uses else None


def write_page_of_extra(cfg: Report, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `report.html` of a run that has the nodes of an extra alone."""
    [folder] = inputs.values()
    stage = STAGES[manifest_of(folder)["stage"]]
    page = importlib.import_module(f"stages.extras.{stage.extra}.page")
    metrics: dict[str, Any] = page.write_page(cfg, inputs, out)
    return metrics


def is_of_another_seed(name_and_folder: tuple[str, Path]) -> bool:
    """Return True if an input is of another seed than the report's own."""
    return "_seed_" in name_and_folder[0]


def read_template_values(
    cfg: Report,
    inputs: dict[str, Path],
    nodes: dict[str, Manifest],
    evaluated: Evaluated,
) -> dict[str, Any]:
    """Return the values of the page's template by name. `nodes` are the manifests of the input nodes by name."""
    results = evaluated.results
    answered = evaluated.answered
    models = results.models
    node_by_role = settings_table.model_nodes(nodes, models)
    policy = nodes[node_by_role["policy"]]
    pairs = list[Pair]()
    why = None
    if "pairs" in policy["inputs"]:
        pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
        why = diagnose(gather_evidence(inputs, nodes, results, pairs), models["policy"])
    confidence = nodes["eval"]["settings"]["confidence"]
    level = f"{100 * confidence:g}%"
    runs = evaluated.runs
    trained_seeds = [each.seed for each in runs if each.seed is not None]
    taught = title_trained_on_tasks(nodes, models)
    answers = side_by_side(answered, evaluated.comparisons, results, cfg.side_by_side)
    token_examples = dict[str, Any]()
    example = inputs["sft"] / "token_example.json"
    if example.exists():
        tokens = load_json(example, list)
        is_text = any("end_of_text" in token for token in tokens)
        title = f"A training example{' of running text, without chat marks' if is_text else ''}"
        token_examples[title] = tokens
    scores = metrics_of(nodes, "label").get("scores") or {}
    lineage = lineage_rows(nodes)
    seconds = sum(row["seconds"] for row in lineage)
    by_round = rounds.rounds_of(results)
    note = claims.note_of_run(results)
    ship = gate_claim(cfg, runs, note)
    over_seeds = seeds.summary(runs, inputs, confidence, note)
    sentence = first_screen.sentence(results, nodes, taught, ship)
    further = extra_sections.read_sections(inputs, results, note)
    headline = Headline(
        results,
        len(trained_seeds),
        taught,
        [each.results.learnt for each in runs],
        level,
        elsewhere=settings_table.is_trained_elsewhere(nodes),
    )
    return {
        **further.values,
        "further_sentences": further.sentences,
        "first_sections": further.first,
        "results": results,
        "models": models,
        "pair": pairs[0] if pairs else None,
        "why": why,
        "runs": runs,
        "answers": answers,
        "number_answered": sum(map(len, answered.values())),
        "lineage": lineage,
        "seconds": seconds,
        "level": f"{level} interval",
        "headline": headline,
        "note": note,
        "over_seeds": over_seeds,
        "sentence": further.opening + sentence + (f" {over_seeds.headline}" if over_seeds else ""),
        "rates": first_screen.rates(results, taught),
        "in_any_form": first_screen.rates_in_any_form(results, taught),
        "lamps": first_screen.lamps(results, nodes, taught, run_command(nodes["eval"]), ship),
        "example": first_screen.example(answers),
        "changed_words": changed_words,
        "chain": first_screen.chain(nodes),
        "facts": first_screen.facts(results, nodes, seconds, len(trained_seeds), why),
        "own_file": first_screen.next_for_files(nodes),
        "lengths": length_bars(inputs, models),
        "scores": plots.bars([*scores], [*scores.values()]),
        "primary": results.differences[results.main_difference],
        "subject": settings_table.subject(nodes, models),
        "steps": next_steps(results, nodes["eval"], trained_seeds, why),
        "roles": {
            role: glossary.ROLES[role_in_glossary(role, nodes[name])]
            for role, name in node_by_role.items()
        },
        "glossary": glossary.GLOSSARY,
        "settings": settings_table.settings(nodes, models, trained_seeds),
        "differences": shown_differences(results),
        "charts": {
            "kinds": charts.chart(results, "kinds", taught),
            "tasks": charts.chart(results, "tasks", taught),
        }
        if results.kinds
        else {},
        "behaviours": behaviours(results),
        "coverage": coverage.coverage_of(results),
        "by_round": by_round,
        "rounds": rounds.table_rows(nodes, by_round) if by_round else [],
        "curves": training_charts(
            inputs, nodes, {models[role]: name for role, name in node_by_role.items()}
        ),
        "samples": strips(inputs, nodes, models),
        "token_examples": token_examples,
        "replaced": nodes["sft"]["metrics"].get("template"),
        "pairs": metrics_of(nodes, "pairs"),
        "reward": reward_figures(nodes),
        "origin": nodes["eval"],
    }


def gate_claim(cfg: Report, runs: Sequence[SeedRun], note: str) -> Claim | None:
    """Return what the gate says of the policy against the model before it, None if nothing was measured of both.
    `note`: why nothing can be said, or ''."""
    old = [noninferiority.by_measure(each.measures, each.results.before) for each in runs]
    new = [noninferiority.by_measure(each.measures) for each in runs]
    lines = noninferiority.compare(old, new, cfg.margin, cfg.confidence, note)
    lines += deciding_groups(group_lines(None, runs[0].results.learnt, note), cfg.margin)
    return noninferiority.claim_of_all(lines, note) if lines else None


def sentence_by_section(
    page: dict[str, Any], nodes: dict[str, Manifest], duration: Callable[[float], str]
) -> dict[str, Any]:
    """Return the sentence at the head of each section of the page, empty if the section has nothing to say."""
    results: Results = page["results"]
    headline = page["headline"]
    settings = page["settings"]
    label = metrics_of(nodes, "label")
    made_of_labels = page["pairs"] or metrics_of(nodes, "unpaired")
    note = page["note"]
    sentences = {
        "results": headline.checks(),
        "learnt": headline.learnt(),
        "judged": " ".join(map(headline.comparison, results.judged.values())),
        "outside": headline.outside_sets(),
        "retention": results.retention and results.retention.sentence,
        "seeds": page["over_seeds"] and page["over_seeds"].sentence,
        "kinds": results.kinds and charts.conclusion(results),
        "proportion": headline.behaviour(),
        "answers": page["answers"] and f"{'; '.join(page['answers'])}.",
        "why": page["why"] and page["why"].sentence,
        "labels": label and f"{label['summary']}. {made_of_labels['summary']}.",
        "curves": training_sentences(results, page["by_round"], nodes, note),
        "settings": f"{settings['model']}; {settings['computed on']}.",
        "lineage": f"{duration(page['seconds'])} of work in {len(page['lineage'])} nodes.",
        "words": "Each model, and the terms of this page.",
        **page["further_sentences"],
    }
    if page["reward"]:
        sentences["reward"] = f"{metrics_of(nodes, 'reward').get('summary', 'It labelled')}."
    return defaultdict(str, sentences)


def metrics_of(nodes: Mapping[str, Manifest], name: str) -> dict[str, Any]:
    """Return the metrics of a node, {} if the run has none of that name."""
    return nodes[name]["metrics"] if name in nodes else {}


def training_sentences(
    results: Results, by_round: rounds.Rounds | None, nodes: dict[str, Manifest], note: str
) -> str:
    """Return what each round and each training achieved. `note`: why nothing can be said of the run, or ''."""
    sentences = list[str]()
    if by_round:
        sentences.append(rounds.sentence(by_round, note))
    for role, name in settings_table.model_nodes(nodes, results.models).items():
        if learns(nodes[name]):
            sentences.append(f"{results.models[role]}: {nodes[name]['metrics']['summary']}.")
    return " ".join(sentences)


def behaviours(results: Results) -> dict[str, Behaviour]:
    """Return length and endings of the answers by set of prompts: those that the verdict is about come first."""
    of_verdict = dict[str, Behaviour]()
    if results.behaviour.mean_tokens:
        of_verdict[str(results.shown_on)] = results.behaviour
    return of_verdict | {name: each.behaviour for name, each in results.open.items()}


def shown_differences(results: Results) -> dict[str, str]:
    """Return the titles of the differences in the table: the verdict's own, those of arms, then others.
    Only the first MOST_DIFFERENCES are shown."""
    titles = results.differences
    of_arms = [name for name in titles if arms(name.split("-"))]
    names = [results.main_difference, *of_arms, *SHOWN_AFTER_ARMS]
    shown = [name for name in names if name in titles]
    return {name: titles[name] for name in shown[:MOST_DIFFERENCES]}


def warnings_by_section(
    nodes: Mapping[str, Manifest], shown_sections: list[str]
) -> dict[str, list[tuple[str, str]]]:
    """Group (node, warning) by the section that shows them; '' is the top of the page."""
    by_section = defaultdict[str, list[tuple[str, str]]](list)
    for name, manifest in nodes.items():
        section = WARNED_IN.get(manifest["stage"], LINEAGE)
        if section not in shown_sections:
            section = LINEAGE
        if name == "eval":
            section = TOP_OF_PAGE
        by_section[section] += [(name, warning) for warning in manifest["warnings"]]
    return by_section


def role_in_glossary(role: str, model: Manifest) -> str:
    """Return the role that describes a model: a policy may be SFT itself, and an SFT an untrained model."""
    if model["stage"] in DRAWING:
        if model["settings"].get("baseline") != "best":
            return "draws"
        return "one_pool" if model["settings"].get("sync_every") == 0 else "best"
    if model["stage"] in POLICY_STAGES and role != "control_pairs":
        return str(model["stage"])
    if model["stage"] == "sft" and role.startswith("control"):
        return "control"
    if model["stage"] != "sft":
        return role
    return "sft" if learns(model) else "other"


def training_charts(
    inputs: Mapping[str, Path], nodes: Mapping[str, Manifest], node_by_title: Mapping[str, str]
) -> list[plots.LineChart]:
    """Return the charts of the training of SFT, the policy and arms."""
    drawn = plots.training("sft", "SFT", read_curves(inputs["sft"]))
    for title, name in node_by_title.items():
        stage = nodes[name]["stage"]
        if stage in POLICY_STAGES:
            drawn += plots.training(stage, title, read_curves(inputs[name]))
    return drawn


def length_bars(
    inputs: Mapping[str, Path], models: Mapping[str, str]
) -> dict[str, list[plots.Bar]]:
    """Return for each evaluated model, by role, the bars of how many answers have how many tokens."""
    bars = dict[str, list[plots.Bar]]()
    for role in models:
        if f"answer_{role}" in inputs:
            answers = load(inputs[f"answer_{role}"] / "answers.parquet", Candidate)
            bars[role] = plots.histogram([answer.length for answer in answers], LENGTH_BOUNDS)
    return bars


def title_trained_on_tasks(nodes: dict[str, Manifest], title_by_role: Mapping[str, str]) -> str:
    """Return the model trained on tasks like the test's: `it` (the policy), SFT's title, or `nothing here`."""
    policy = "it"
    tasks = nodes["data"]["config"].get("tasks") or {}
    if tasks.get("preference") or tasks.get("open_preference"):
        label = nodes.get("label")
        is_of_data = label and "pool" in label["inputs"] and "data" in label["roots"]
        if is_of_data or any(node["stage"] in DRAWING for node in nodes.values()):
            return policy
    if learns(nodes["sft"]) and (tasks.get("sft") or tasks.get("open_sft")):
        return title_by_role.get("sft", policy)
    return "nothing here"


def reward_figures(nodes: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return the figures of the reward model. `trained`: those on held-out pairs, if this run trained it. `scored`:
    the checks passed by the best of n by score, if it labelled prompts with checks."""
    figures = dict[str, Any]()
    for name in ("label", "label_reward_model"):
        metrics = metrics_of(nodes, name)
        has_checks_of_best_of_n = "best_of" in metrics
        if metrics.get("labeler") == "reward_model" and has_checks_of_best_of_n:
            figures["scored"] = metrics
    if "accuracy" in metrics_of(nodes, "reward"):
        figures["trained"] = nodes["reward"]["metrics"]
    return figures


def lineage_rows(nodes: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Return the rows of the lineage table; a node that several seeds share occurs once."""
    row_by_fingerprint = dict[str, dict[str, Any]]()
    for name, node in nodes.items():
        shared_by_seeds = node["fingerprint"] in row_by_fingerprint
        if shared_by_seeds:
            continue
        inputs = node["inputs"].items()
        row_by_fingerprint[node["fingerprint"]] = {
            "role": name,
            "stage": node["stage"],
            "fingerprint": node["fingerprint"],
            "inputs": [f"{role}: {each['stage']} {each['fingerprint']}" for role, each in inputs],
            "seconds": node["wall_seconds"],
            "memory": node.get("peak_gpu_memory") or node["peak_memory"],
            "tokens": node["metrics"].get("tokens"),
            "command": f"{command_of(node)} rebuild={node['stage']}",
            "summary": node["metrics"]["summary"],
        }
    return [*row_by_fingerprint.values()]
