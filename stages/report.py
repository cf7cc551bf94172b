"""Stage `report`: one self-contained page on the result and its causes, and one page on the labels.

It reads only its input nodes, and escapes text that a model wrote. Empty sections are left out."""

from collections import defaultdict
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from stages.config.schema import POLICY_STAGES, Report
from stages.evaluation import benchmarks, rounds, suite_results
from stages.evaluation.diagnosis.diagnose import Diagnosis, diagnose
from stages.evaluation.diagnosis.evidence import gather_evidence
from stages.evaluation.outcomes import arms
from stages.pages import (
    charts,
    first_screen,
    glossary,
    label_page,
    plots,
    seeds,
    settings_table,
)
from stages.pages.environment import environment
from stages.pages.example_answers import changed_words, side_by_side, strips
from stages.pages.headline import Headline, next_steps, run_command
from stages.pages.settings_table import learns
from stages.store.manifest import Manifest, manifest_of
from stages.store.records import Candidate, Pair, load
from stages.store.sealed_json import load_json, require_keys
from stages.store.workspace import StageDir, read_curves

# in the evaluation's warnings about prompts that it left out
NOT_COUNTED = ("do not count", "count for none")
# differences shown after the verdict's own and those of arms
SHOWN = ("policy-control", "control-sft", "sft-base")
MOST_SHOWN = 4  # differences: more make a table that is wider than a page
LENGTHS = (0, 2, 4, 8, 16, 32, 64, 128, 256)  # bounds of the bars of answers' lengths, in tokens
# The section that shows a stage's warnings, folded. Warnings of the evaluation stand at the top of the page, because
# they change how the verdict is read.
WARNED_IN = {
    stage: section
    for section, stages in glossary.TEXTS["warned_in"].items()
    for stage in stages.split()
}


def run(cfg: Report, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `report.html` and, for the labels of the last round, `labels.html`."""
    page = Page(cfg, inputs)
    html = page.env.get_template("page.html.jinja").render(page.values())
    (out / "report.html").write_text(html, encoding="utf-8")
    if "label" in inputs:
        (out / label_page.PAGE).write_text(label_page.page(inputs["label"]), encoding="utf-8")
    return {
        "verdict": page.results["verdict"],
        "sentence": page.sentence,
        "bytes": len(html.encode()),
        "summary": page.faults + page.results["verdict"],
    }


class Page:
    """What the report's page shows. `nodes` are the manifests of the input nodes by name, the report's own seed first;
    `models` are the titles of the evaluated models by role, and `model_names` the names of their nodes."""

    def __init__(self, cfg: Report, inputs: dict[str, Path]):
        self.inputs = dict(sorted(inputs.items(), key=is_of_another_seed))
        self.nodes = {name: manifest_of(folder) for name, folder in self.inputs.items()}
        self.results = with_plain_title(
            load_json(inputs["eval"] / "results.json", require_keys("models"))
        )
        self.models = self.results["models"]
        self.model_names = settings_table.model_nodes(self.nodes, self.models)
        policy = self.nodes[self.model_names["policy"]]
        self.pairs = list[Pair]()
        self.why: Diagnosis | None = None
        if "pairs" in policy["inputs"]:
            self.pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
            evidence = gather_evidence(self.inputs, self.nodes, self.results, self.pairs)
            self.why = diagnose(evidence, self.models["policy"])
        self.confidence = self.nodes["eval"]["settings"]["confidence"]
        seed = policy["settings"]["seed"] if learns(policy) else None
        self.runs = seeds.read_runs(self.inputs, self.nodes, seed)
        self.over_seeds = seeds.summary(self.runs, self.inputs, self.confidence)
        self.trained_seeds = [each["seed"] for each in self.runs if each["seed"] is not None]
        self.taught = trained_on_tasks(self.nodes, self.models)
        self.headline = Headline(
            self.results,
            len(self.trained_seeds),
            self.taught,
            [each["learnt"] for each in self.runs],
            f"{100 * self.confidence:g}%",
            elsewhere="examine" in inputs,
        )
        self.answers = side_by_side(self.inputs, self.results, cfg.side_by_side)
        self.settings = settings_table.settings(self.nodes, self.models, self.trained_seeds)
        self.reward = reward_figures(self.nodes)
        self.lineage = lineage_rows(self.nodes)
        self.seconds = sum(row["seconds"] for row in self.lineage)
        self.examined = dict[str, Any]()
        self.faults = ""
        if "examine" in inputs:
            self.examined = load_json(
                inputs["examine"] / "examination.json", require_keys("faults", "facts", "rows")
            )
            self.faults = f"{self.examined['sentence']}. "
        self.sentence = self.faults + first_screen.sentence(self.results, self.nodes, self.taught)
        self.env = environment()

    def metrics(self, name: str) -> dict[str, Any]:
        """Return the metrics of a node, {} if the run has none of that name."""
        return self.nodes[name]["metrics"] if name in self.nodes else {}

    def conclusions(self) -> dict[str, Any]:
        """Return the sentence at the head of each section. A section without one is left out."""
        results = self.results
        differences = results["differences"]
        made_of_labels = self.metrics("pairs") or self.metrics("unpaired")
        label = self.metrics("label")
        duration = self.env.filters["duration"]
        longest = max(self.lineage, key=itemgetter("seconds"))
        conclusions = {
            "examined": self.faults,
            "results": self.headline.checks(),
            "learnt": self.headline.learnt(),
            "judged": " ".join(map(self.headline.comparison, results["judged"].values())),
            "outside": self.headline.outside_sets(),
            "benchmarks": benchmarks.sentence(
                results.get("benchmarks", []), results["main_difference"], differences
            ),
            "retention": results["retention"].get("sentence"),
            "seeds": self.over_seeds and self.over_seeds["sentence"],
            "kinds": results["kinds"] and charts.conclusion(results),
            "proportion": self.headline.behaviour(),
            "answers": self.answers and f"{'; '.join(self.answers)}.",
            "why": self.why and self.why.sentence,
            "labels": label and f"{label['summary']}. {made_of_labels['summary']}.",
            "curves": self.training_sentences(),
            "settings": f"{self.settings['model']}; {self.settings['computed on']}.",
            "lineage": f"{duration(self.seconds)} of work in {len(self.lineage)} nodes; the longest was "
            f"{longest['role'].replace('_', ' ')}, {duration(longest['seconds'])}.",
            "words": "Each model, and SFT, DPO, held out, interval, KL and others, in a sentence each.",
        }
        if "suites" in results:
            conclusions["suites"] = suite_results.sentence(results["suites"], self.models)
        if self.reward:
            trained = self.reward.get("trained", {})
            conclusions["reward"] = f"{trained.get('summary', 'It labelled the candidates')}."
        return defaultdict(str, conclusions)

    def training_sentences(self) -> str:
        """Return what each round and each training achieved."""
        sentences = list[str]()
        if "rounds" in self.results:
            sentences.append(rounds.sentence(self.results["rounds"]))
        for role, name in self.model_names.items():
            if learns(self.nodes[name]):
                sentences.append(f"{self.models[role]}: {self.metrics(name)['summary']}.")
        return " ".join(sentences)

    def differences(self) -> dict[str, str]:
        """Return the titles of the differences in the table: the verdict's own, those of arms, then others."""
        titles = self.results["differences"]
        of_arms = [name for name in titles if arms(name.split("-"))]
        names = [self.results["main_difference"], *of_arms, *SHOWN]
        shown = [name for name in names if name in titles]
        return {name: titles[name] for name in shown[:MOST_SHOWN]}

    def token_examples(self) -> dict[str, Any]:
        """Return the texts of tokens of a row of each training, and whether they are trained."""
        files = {"A training example": self.inputs["sft"] / "token_example.json"}
        if "reference" in self.inputs:
            folder = self.inputs["reference"]
            for side in ("chosen", "rejected"):
                files[f"A pair of several turns, {side}"] = folder / f"{side}_example.json"
        return {title: load_json(file, list) for title, file in files.items() if file.exists()}

    def values(self) -> dict[str, Any]:
        """Return the values of the page's template: these attributes, and what is made of them."""
        inputs = self.inputs
        nodes = self.nodes
        results = self.results
        taught = self.taught
        contents = glossary.contents(
            self.conclusions(),
            results["gives_verdict"],
            helped=self.why is None or self.why.helped,
        )
        by_title = {self.models[role]: name for role, name in self.model_names.items()}
        roles = {role: model_kind(role, nodes[name]) for role, name in self.model_names.items()}
        label = self.metrics("label")
        return {
            **vars(self),
            "rates": first_screen.rates(results, taught),
            "in_any_form": first_screen.rates_in_any_form(results, taught),
            "lamps": first_screen.lamps(results, nodes, taught, run_command(nodes["eval"])),
            "example": first_screen.example(self.answers),
            "changed_words": changed_words,
            "chain": first_screen.chain(nodes),
            "facts": first_screen.facts(results, nodes, self.seconds, self.why),
            "own_file": first_screen.next_for_files(nodes),
            "lengths": lengths(inputs, self.models),
            "scores": scores(label),
            "primary": results["differences"][results["main_difference"]],
            "subject": settings_table.subject(nodes, self.models),
            "contents": contents,
            "steps": next_steps(results, nodes["eval"], self.trained_seeds, self.why),
            "warnings": warnings(nodes, [*contents]),
            "roles": {role: glossary.ROLES[kind] for role, kind in roles.items()},
            "glossary": glossary.GLOSSARY,
            "level": f"{100 * self.confidence:g}% interval",
            "differences": self.differences(),
            "charts": {
                by: charts.chart(results, by, taught) for by in ("kinds", "tasks") if results[by]
            },
            "rounds": rounds.table_rows(nodes, results["rounds"]) if "rounds" in results else [],
            "curves": curves(inputs, nodes, by_title),
            "samples": strips(inputs, nodes, self.models),
            "token_examples": self.token_examples(),
            "replaced": nodes["sft"]["metrics"].get("template"),
            "pairs": self.metrics("pairs"),
            "pair": self.pairs[0] if self.pairs else None,
            "origin": nodes["eval"],
        }


def is_of_another_seed(item: tuple[str, Path]) -> bool:
    """Return True if an input is of another seed than the report's own."""
    return "_seed_" in item[0]


def with_plain_title(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results with a title for the control that says what it is."""
    titled = dict(results)
    for part in ("models", "differences"):
        titled[part] = dict(results[part])
        for key, title in results[part].items():
            titled[part][key] = title.replace("Control", first_screen.CONTROL)
    return titled


def warnings(
    nodes: Mapping[str, Manifest], sections: list[str]
) -> dict[str, list[tuple[str, str]]]:
    """Group (node, warning) by the section that shows them; '' is the top of the page."""
    by_section = defaultdict[str, list[tuple[str, str]]](list)
    for name, manifest in nodes.items():
        for warning in manifest["warnings"]:
            section = WARNED_IN.get(manifest["stage"], "lineage")
            if name.startswith("judged_"):
                section = "judged"
            if name == "eval":
                section = "answers" if any(words in warning for words in NOT_COUNTED) else ""
            if section and section not in sections:
                section = "lineage"
            by_section[section].append((name, warning))
    return by_section


def model_kind(role: str, model: Manifest) -> str:
    """Return the role that describes a model: a policy may be SFT itself, and an SFT an untrained model."""
    if model["stage"] in POLICY_STAGES and role != "control_pairs":
        return str(model["stage"])
    if role == "control" or model["stage"] != "sft":
        return role
    return "sft" if learns(model) else "other"


def curves(
    inputs: Mapping[str, Path], nodes: Mapping[str, Manifest], models: Mapping[str, str]
) -> list[plots.LineChart]:
    """Return the charts of the training of SFT, the policy and arms. `models`: nodes by title."""
    drawn = plots.training("sft", "SFT", read_curves(inputs["sft"]))
    for title, name in models.items():
        stage = nodes[name]["stage"]
        if stage in POLICY_STAGES:
            drawn += plots.training(stage, title, read_curves(inputs[name]))
    return drawn


def lengths(inputs: Mapping[str, Path], models: Mapping[str, str]) -> dict[str, list[plots.Bar]]:
    """Return for each evaluated model, by role, the bars of how many answers have how many tokens."""
    bars = dict[str, list[plots.Bar]]()
    for role in models:
        if f"answer_{role}" in inputs:
            answers = load(inputs[f"answer_{role}"] / "answers.parquet", Candidate)
            bars[role] = plots.histogram([answer.length for answer in answers], LENGTHS)
    return bars


def scores(label: Mapping[str, Any]) -> list[plots.Bar]:
    """Return the bars of how many candidates have which score."""
    counts = label.get("scores") or {}
    return plots.bars([*counts], [*counts.values()])


def trained_on_tasks(nodes: dict[str, Manifest], models: Mapping[str, str]) -> str:
    """Return the model trained on tasks like the test's: `it` (the policy), SFT's title, or `nothing here`."""
    tasks = nodes["data"]["config"].get("tasks") or {}
    if tasks.get("preference") or tasks.get("open_preference"):
        pool = None
        if "label" in nodes:
            pool = nodes["label"]["inputs"].get("pool", {}).get("fingerprint")
        for node in nodes.values():
            is_pool_of_data = node["fingerprint"] == pool and "data" in node["roots"]
            if is_pool_of_data or node["stage"] == "grpo":
                return "it"
    if learns(nodes["sft"]) and (tasks.get("sft") or tasks.get("open_sft")):
        return models.get("sft", "it")
    return "nothing here"


def reward_figures(nodes: Mapping[str, Manifest]) -> dict[str, Any]:
    """Return the figures of the reward model. `trained`: those on held-out pairs, if this run trained it. `scored`:
    the checks passed by the best of n by score, if it labelled prompts with checks."""
    figures = dict[str, Any]()
    for name in ("label", "label_reward_model"):
        metrics = nodes[name]["metrics"] if name in nodes else {}
        if metrics.get("labeler") == "reward_model" and "best_of" in metrics:
            figures["scored"] = metrics
    if "reward" in nodes and "accuracy" in nodes["reward"]["metrics"]:
        figures["trained"] = nodes["reward"]["metrics"]
    return figures


def lineage_rows(nodes: dict[str, Manifest]) -> list[dict[str, Any]]:
    """Return the rows of the lineage table; a node that several seeds share occurs once."""
    rows = dict[str, dict[str, Any]]()
    for name, node in nodes.items():
        if node["fingerprint"] in rows:
            continue
        inputs = node["inputs"].items()
        rows[node["fingerprint"]] = {
            "role": name,
            "stage": node["stage"],
            "fingerprint": node["fingerprint"],
            "inputs": [f"{role}: {each['stage']} {each['fingerprint']}" for role, each in inputs],
            "seconds": node["wall_seconds"],
            "memory": node.get("peak_gpu_memory") or node["peak_memory"],
            "tokens": node["metrics"].get("tokens"),
            "command": f"{node['command']} rebuild={node['stage']}",
            "summary": node["metrics"]["summary"],
        }
    return [*rows.values()]
