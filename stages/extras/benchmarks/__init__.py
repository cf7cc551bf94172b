"""`benchmark.tasks`: every evaluated model answers tasks of lm-evaluation-harness, in the template of its training.

`stage=benchmark` asks one model, and `eval` and `report` have a section on all of them."""

from dataclasses import dataclass, field
from functools import cache

import yaml
from omegaconf import II

from stages.config.blocks.runtimes import InferenceRuntime
from stages.config.choices import Precision
from stages.config.command_record import Block
from stages.config.errors import UserError
from stages.config.installation import output_of, version
from stages.config.limits import at_least, computed, share

HARNESS = "lm-eval"  # the distribution of lm-evaluation-harness
PREFIX = "benchmark_"  # of the names of nodes, before the model's role
INSTRUMENT = "benchmark"  # the node whose fingerprint tells results of other settings apart


@dataclass
class BenchmarkRuntime(InferenceRuntime):
    """The device, the batches, and the Python that runs the harness. In fp32, they change no result."""

    batch_size: int = at_least(1, 64)
    shard_size: int | None = at_least(1, 128)
    python: str | None = None  # one that has lm-eval


@dataclass
class Benchmark(Block):
    """Tasks of lm-evaluation-harness, which every evaluated model answers in its training's template."""

    tasks: list[str] = field(default_factory=list)  # their names, or those of groups
    # a folder with your own tasks, data and functions beside them
    tasks_dir: str | None = None
    limit: int | None = at_least(1, None)  # first prompts of a task
    max_new_tokens: int | None = at_least(1, None)  # at most; null: what the task says
    max_dropped: float | None = share(None)  # as answer.max_dropped
    precision: Precision = field(default=II("precision"))
    runtime: BenchmarkRuntime = field(default_factory=BenchmarkRuntime)
    engine: str | None = computed(None)  # set by the pipeline: the harness's version

    @property
    def folders(self) -> dict[str, str | None]:
        return {"benchmark.tasks_dir": self.tasks_dir}

    def validate(self, is_target: bool) -> None:
        """Raise UserError for a file of tasks that is no YAML, or beyond the bounds."""
        # imported late: every command line reads this record
        from stages.store.bounded_yaml import read_yaml_text
        from stages.store.plugins import user_path

        if not self.tasks or not self.tasks_dir:
            return
        folder = user_path(self.tasks_dir)
        for file in sorted(folder.rglob("*.yaml")):
            try:
                read_yaml_text(file)
            except (OSError, ValueError, yaml.YAMLError) as error:
                reason = " ".join(str(error).split())
                where = f"benchmark.tasks_dir={folder}: {file.relative_to(folder)}"
                raise UserError(f"{where}: {reason}. Correct the file.") from error


@cache
def harness_version(python: str | None) -> str | None:
    """Return the version of lm-evaluation-harness in a Python (None: this one); None if it is not installed there."""
    if python is None:
        return version(HARNESS)
    return output_of(
        python, "-I", "-c", f"from importlib.metadata import version; print(version('{HARNESS}'))"
    )


BLOCKS = {"benchmark": Benchmark}
