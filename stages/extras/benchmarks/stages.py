"""The stage that asks one model the tasks."""

from stages.config.stage_record import Stage

STAGES = (
    Stage(
        "benchmark",
        3,
        "lm-eval's tasks, asked as trained",
        next="eval",
        absent="Name tasks: benchmark.tasks=[NAME].",
        settings=("benchmark",),
        section="benchmarks",
    ),
)
