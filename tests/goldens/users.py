"""Commands with recipes as users write them, in `recipes/` of a folder of theirs: on a base, on two levels, with another
option of a group, by path, with typed keys on top."""

from pathlib import Path

from stages.config.installation import ROOT

FOLDER = Path(__file__).parent  # where they type these commands
EXAMPLES = [path.relative_to(ROOT) for path in sorted((ROOT / "docs" / "examples").glob("*.yaml"))]
LINES = [
    "recipe=hotter",
    "recipe=./recipes/hotter.yaml pairs=all",
    "recipe=own_model",
    "recipe=own_model scale=toy",
    "recipe=second_try",
    "recipe=second_try dpo.beta=0.5 sft.lora.rank=4",
    "recipe=losses",
    "recipe=losses 'dpo.loss_type=[ipo]' dpo.loss_weights=null dpo.first_difference=false",
    "recipe=grid",
    "recipe=first_try dpo.beta=0.05,0.1 stage=eval -m",
    "recipe=schedules",
    "recipe=schedules 'dpo.trainer.extra.optim_args=\"foreach=True\"' sft.epochs=1",
    "recipe=finished_sft",
    "recipe=candidates",
    "recipe=mixture",
    "recipe=rounds",
    "recipe=drawn_online",
    "recipe=tiny,hotter dpo.beta=0.3 -m",
]


def folder_of(line: str) -> Path:
    """Return the working directory in which a command is typed."""
    return FOLDER if line in LINES else ROOT
