"""Six runs that are wrong on purpose: which cause is named first? `python -m tests.bench.diagnosis [OUTPUTS]
[KEY=VALUE …]`.

All six are made in one store, beside the run that is as it should be, and share base, SFT and, but for the one whose
completions are cut off, samples. Where that cuts is made for the demo, the recipe that this is for.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from stages.config.errors import UserError
from stages.config.schema import Config
from stages.evaluation.diagnosis.diagnose import diagnose
from stages.evaluation.diagnosis.evidence import gather_evidence
from stages.pipeline.build import build
from stages.store.manifest import manifest_of
from stages.store.records import Pair, load
from tests.bench import chains
from tests.helpers import settings

PARTS = Path(__file__).with_name("planted.py")
CUT = 6  # tokens: about half of the demo's completions are longer


@dataclass(frozen=True)
class Plant:
    """A planted mistake: its keys, and the finding that the report should name first."""

    name: str
    overrides: list[str]
    finding: str

    def is_named(self, first: str) -> bool:
        """By a finding, or by the line in which a training was stopped (`dpo.learning_rate`)."""
        return self.finding in first.replace("_", " ")


def plants(cfg: Config, cut: int = CUT) -> list[Plant]:
    """The six. `cut`: tokens after which a completion is unfinished."""
    rate = cfg.dpo.learning_rate

    def own(name):
        return "label=own", f"label.own={{file: {PARTS}, name: {name}}}"

    keep_all = ["pairs.unfinished=keep", "pairs.max_length_ratio=null"]
    unfinished = [*own("Ended"), f"sample.max_new_tokens={cut}", *keep_all]
    return [
        Plant("rate × 30", [f"dpo.learning_rate={30 * rate:g}"], "learning rate"),
        Plant("rate ÷ 100", [f"dpo.learning_rate={rate / 100:g}"], "learning rate"),
        Plant("labels by coin", [*own("Coin")], "labels that agree with the prompts' checks"),
        Plant("chosen = longer", [*own("Longer")], "chosen longer than rejected"),
        Plant("unfinished rejected", unfinished, "rejected completions that were cut off"),
        Plant("beta 5", ["dpo.beta=5"], "beta"),
    ]


def named(outputs: Path, overrides: list[str]) -> list[str]:
    """The findings of the run's report, likeliest cause first; for a training that the pipeline
    stops, the line that says why."""
    cfg, store, nodes = chains.prepared(outputs, overrides)
    try:
        build([nodes["eval"]], store, cfg, overrides)
    except UserError as stopped:
        return [str(stopped)]
    inputs = {role: store.folder(node) for role, node in nodes["report"].inputs.items()}
    results = json.loads((inputs["eval"] / "results.json").read_text())
    logging.info("%s", results["verdict"])
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    manifests = {role: manifest_of(folder) for role, folder in inputs.items()}
    return [
        finding.quantity
        for finding in diagnose(
            gather_evidence(inputs, manifests, results, pairs), "DPO"
        ).out_of_range
    ]


def main(outputs: Path, overrides: list[str]) -> None:
    lines, right = (
        [f"{'as it should be':<20} {'; '.join(named(outputs, overrides)) or 'nothing'}"],
        0,
    )
    for plant in plants(settings(*overrides)):
        causes = named(outputs, [*overrides, *plant.overrides]) or ["nothing"]
        right += plant.is_named(causes[0])
        lines.append(f"{plant.name:<20} {'; '.join(causes)}")
    logging.info("\nOut of range, likeliest cause first:\n%s", "\n".join(lines))
    logging.info("The planted cause is named first in %d of 6.", right)


if __name__ == "__main__":
    chains.run(main)
