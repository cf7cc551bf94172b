"""The bake-off: every objective from the same SFT, each tuned as often.

`python -m tests.bench.bakeoff [OUTPUTS] [KEY=VALUE …] [ARM[:RATE] …]`, with `'seeds=[1,2]'` for three seeds.

Each of ARMS is trained at three learning rates with the run's seed, and answers validation prompts. With the rate that
passes most of them it is trained with every seed, and answers the test prompts. If arms are named, only these are
trained, and one whose rate is given is not tuned. The same command goes on where one was stopped. Tells pass rates by
group and seed, and differences from SFT, with a second interval for as many comparisons as there are arms.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from stages.evaluation.estimate import Means
from stages.evaluation.outcomes import Outcome, average_runs, read_answers, tabulate
from stages.pipeline.build import build
from stages.store.node import Node
from stages.store.records import Example, load
from tests.bench import chains
from tests.helpers import composed, settings_by_key

SETTINGS = (
    "recipe=docs/examples/bakeoff.yaml",
    "tracker=none",
    "arms=[]",
    "control=false",
    "control_pairs=null",
    "answer.max_new_tokens=128",
    "data.tasks.validation=560",
    "data.tasks.open_validation=140",
    "data.tasks.rephrased=0",
    "data.tasks.open_test=240",
    "data.tasks.open_plain=200",
)
VIEWS = {
    "trained tasks": ("seen", "unseen_phrasings"),
    "open requests": ("open_test",),
    "new tasks": ("unseen_tasks",),
}


@dataclass(frozen=True)
class Arm:
    """An objective: the node of its model, the key and values of its learning rate, and overrides."""

    node: str
    key: str
    rates: tuple[float, ...]
    overrides: tuple[str, ...] = ()

    def settings(self, rate: float) -> list[str]:
        return [*self.overrides, f"{self.key}={rate}"]


PAIR_RATES = (2.5e-5, 5e-5, 1e-4)
FOUR_ROUNDS = ("rounds=4", "sample.prompts_per_round=400")
ARMS = {
    "dpo": Arm("dpo", "dpo.learning_rate", PAIR_RATES),
    "control": Arm("control", "control_learning_rate", PAIR_RATES, ("control=true",)),
    "random": Arm("control_pairs", "dpo.learning_rate", PAIR_RATES, ("control_pairs=random",)),
    "rounds": Arm("dpo", "dpo.learning_rate", PAIR_RATES, FOUR_ROUNDS),
    "grpo": Arm("grpo", "grpo.learning_rate", (1e-5, 2e-5, 4e-5), ("align=grpo",)),
    "kto": Arm("kto", "kto.learning_rate", (2e-6, 5e-6, 1e-5), ("align=kto",)),
}


def undeclared_differences(name: str, *overrides: str) -> set[str]:
    """Return the keys in which an arm's composed settings differ from DPO's, less those that the arm states."""
    arm = ARMS[name]
    dpo = ARMS["dpo"]
    own = settings_by_key(composed(*SETTINGS, *overrides, *arm.settings(arm.rates[0])))
    plain = settings_by_key(composed(*SETTINGS, *overrides, *dpo.settings(dpo.rates[0])))
    differing = {key for key in plain.keys() | own.keys() if plain.get(key) != own.get(key)}
    stated = {override.partition("=")[0] for override in arm.settings(0.0)}
    return differing - stated - {dpo.key}


@dataclass(frozen=True)
class Run:
    """A chain in a store with one of the command's seeds; None: the run's own."""

    outputs: Path
    overrides: tuple[str, ...]
    seed: int | None = None

    def answers(self, model: str, *more: str) -> Path:
        """Build a model and its answers, and return their folder."""
        seeds = "seeds=[]" if self.seed is None else f"seeds=[{self.seed}]"
        words = [*SETTINGS, *self.overrides, *more, seeds]
        cfg, store, nodes = chains.prepared(self.outputs, words)
        template = self.node(nodes, "answer_sft")
        inputs = {**template.inputs, "model": self.node(nodes, model)}
        node = replace(template, inputs=inputs)
        build([node], store, cfg, words)
        return store.folder(node)

    def node(self, nodes: dict[str, Node], name: str) -> Node:
        return nodes.get(f"{name}_seed_{self.seed}", nodes[name])

    def examples(self) -> dict[str, Example]:
        _, store, nodes = chains.prepared(self.outputs, [*SETTINGS, *self.overrides])
        examples = load(store.folder(nodes["data"]) / "examples.parquet", Example)
        return {example.id: example for example in examples}

    def outcomes(self, folders: dict[str, Path]) -> list[Outcome]:
        """Return what each prompt with checks came to, by each folder's answers."""
        answers, _ = read_answers(folders)
        examples = self.examples()
        answered = next(iter(answers.values()))
        prompts = [examples[name] for name in answered if examples[name].checks]
        return tabulate(prompts, answers).outcomes()


def main(outputs: Path, words: list[str]) -> None:
    rates_by_arm = dict[str, str]()
    overrides = list[str]()
    for word in words:
        name, _, rate = word.partition(":")
        if name in ARMS:
            rates_by_arm[name] = rate
        else:
            overrides.append(word)
    rates_by_arm = rates_by_arm or dict.fromkeys(ARMS, "")
    own = Run(outputs, tuple(overrides))
    settings = dict[str, list[str]]()
    for name, rate in rates_by_arm.items():
        if keys := undeclared_differences(name, *overrides):
            raise SystemExit(f"{name} differs from DPO in more than it states: {', '.join(keys)}")
        settings[name] = ARMS[name].settings(float(rate) if rate else tuned_rate(own, name))
    cfg, _, _ = chains.prepared(outputs, [*SETTINGS, *overrides])
    outcomes = list[list[Outcome]]()
    for run in (own, *(replace(own, seed=seed) for seed in cfg.seeds)):
        folders = {"base": run.answers("base"), "sft": run.answers("sft")}
        for name, more in settings.items():
            folders[name] = run.answers(ARMS[name].node, *more)
        outcomes.append(run.outcomes(folders))
    for view, groups in VIEWS.items():
        tell(view, groups, outcomes, own.examples())


def tuned_rate(run: Run, name: str) -> float:
    """Return the learning rate at which an arm passes most validation prompts; of equal ones the lowest."""
    passed = dict[float, int]()
    for rate in ARMS[name].rates:
        more = [*ARMS[name].settings(rate), "answer.split=validation"]
        outcomes = run.outcomes({"model": run.answers(ARMS[name].node, *more)})
        passed[rate] = sum(outcome.passed for outcome in outcomes)
        logging.info("%s at %g passes %d of %d", name, rate, passed[rate], len(outcomes))
    return max(passed, key=passed.__getitem__)


def tell(
    view: str, groups: tuple[str, ...], runs: list[list[Outcome]], examples: dict[str, Example]
) -> None:
    """Tell pass rates and differences from SFT, of each prompt's outcomes averaged over seeds."""
    of_view = [[o for o in run if examples[o.prompt_id].group in groups] for run in runs]
    table = average_runs(of_view, examples)
    means = Means(table.passed, [prompt.task for prompt in table.prompts])
    logging.info("%s: %d prompts", view, len(table.prompts))
    arms = len(table.roles) - 2
    sft = table.roles.index("sft")
    for column, role in enumerate(table.roles):
        by_seed = [sum(o.passed for o in run if o.role == role) for run in of_view]
        rate = 100 * table.passed[:, column].mean()
        logging.info("    %-10s %.1f%%, passed by seed: %s", role, rate, by_seed)
        if role != "sft":
            corrected = means.difference(column, sft, 1 - 0.05 / arms).bounds()
            delta = means.difference(column, sft).points()
            logging.info("        − SFT: %s, corrected %s", delta, corrected)


if __name__ == "__main__":
    chains.run(main)
