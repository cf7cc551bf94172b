"""The sections of an evaluation's results that extras bring: `results.py` in the folder of an extra measures one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.config.blocks.evaluation import Eval
from stages.config.extras import folder_of, join_entries, modules_of_extras
from stages.evaluation.measures import Measure
from stages.store.workspace import StageDir


@dataclass(frozen=True)
class Section:
    """The `figures` stand in the results under the section's name, unless they are empty. `measures` are for the gate."""

    name: str
    figures: object
    measures: list[Measure]


def measure_sections(cfg: Eval, inputs: Mapping[str, Path], out: StageDir) -> list[Section]:
    """Return the sections of all extras. `inputs`: the folders of the nodes that `eval` reads."""
    by_extra = dict[str, dict[str, Section]]()
    for module in modules_of_extras("results"):
        section: Section = module.measure_section(cfg, inputs, out)
        by_extra[folder_of(module)] = {section.name: section}
    return [*join_entries(by_extra, "section of results").values()]
