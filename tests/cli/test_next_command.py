"""Check that the `Next:` command of every stage composes and has nodes to build, under settings of every kind."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from stages.cli import compose
from stages.cli.main import next_command
from stages.cli.typed_line import job_line, line_of_job, read_line
from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from stages.config.schema import Config
from stages.config.stage_table import Target
from stages.pipeline.graph import requested_nodes, wire_graph
from stages.preflight import constraints
from tests.helpers import composed, refuse_unread, slow_but

FILE = "stages/tasks/toy_preferences.jsonl"
JUDGE = "label=judge label.endpoints=[{base_url:'http://127.0.0.1:1',model:x}]"
SPLITS = "columns:{messages:chosen,rejected:null},splits:{sft:0.5,preference:0.5}"
SOURCE = f"data=file data.sources=[{{path:{FILE},{SPLITS}}}]"
NO_TESTS = [
    f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks", "rephrased")
]
ROWS = '{"prompt": "a", "completions": ["b", "c"]}'
# Typed settings, and for some stages the next stage, or None.
LINES = {
    "recipe=tiny": {
        "base": "sft",
        "sample": "label",
        "label": "pairs",
        "unpaired": "eval",
        "answer": "eval",
    },
    f"recipe=tiny label=dataset label.path={FILE}": {
        "data": "sft",
        "sft": "label",
        "label": "pairs",
    },
    "recipe=tiny sft=none": {"base": "sft", "sft": "sample"},
    "recipe=tiny rounds=2": {"pairs": "reference", "dpo": "eval"},
    "recipe=tiny sample.pool=[{n:2},{model:base,n:2}]": {"sample": "label", "pool": "label"},
    "recipe=tiny sample.candidates_per_prompt=1": {
        "sft": "sample",
        "sample": "label",
        "label": None,
    },
    f"recipe=tiny reward.source.path={FILE} label=reward_model": {
        "sft": "sample",
        "reward": "report",
    },
    f"recipe=tiny {SOURCE} label=dataset label.path={FILE}": {
        "source": "data",
        "dpo": "eval",
        "reward": "report",
    },
    "recipe=tiny align=grpo": {"sft": "grpo", "grpo": "eval"},
    "recipe=tiny align=kto": {"sft": "sample", "reference": "kto", "kto": "eval"},
    "recipe=tiny align=none": {"sft": "eval", "answer": "eval"},
    "recipe=tiny pairs.validation_fraction=0 NO_TESTS": {"dpo": "chat"},
    "recipe=tiny sample=file sample.own_prompts=false sample.file=ROWS": {
        "sample": "label",
        "label": "pairs",
    },
}
RARER = {
    "recipe=demo": {"data": "sft", "select": "sft", "sft": "sample", "dpo": "eval"},
    f"recipe=tiny {SOURCE} {JUDGE}": {"source": "data", "dpo": "eval", "eval": "report"},
    f"recipe=tiny sample=file sample.file=ROWS {JUDGE}": {"sample": "label", "label": "pairs"},
    "recipe=zephyr_7b scale=toy": {},
}
if "human" in EXTRAS:
    RARER["recipe=tiny eval/judged=human"] = {"dpo": "eval", "versus": "eval"}


def of_stages(typed: list[str], root: Path) -> dict[str, str | None]:
    """Return the next command of each stage of these settings, after checking that it builds something."""
    cfg: Config
    cfg, store, plain = compose.prepare(
        composed("tracker=none", f"outputs={root}", "stage=data", *typed), line_of_job().values
    )
    next_commands = dict[str, str | None]()
    for stage in Target:
        config = replace(cfg, stage=str(stage))
        try:
            constraints.validate_config(config)
            # no other target's graph has these stages
            special = stage in (Target.unpaired, Target.reward)
            nodes = wire_graph(config, store.digest_cache) if special else plain
            requested_nodes(config, nodes)
        except UserError:
            continue
        line = next_command(config, job_line(read_line(()), typed), {})
        next_commands[stage] = line
        if line and "stage=chat" not in line:
            [words] = [word for word in shlex.split(line) if word.startswith("stage=")]
            following = replace(cfg, stage=words.removeprefix("stage="))
            constraints.validate_config(following)
            refuse_unread(following, shlex.split(line)[2:])
            assert requested_nodes(following, wire_graph(following, store.digest_cache))
    return next_commands


@pytest.mark.extended
@pytest.mark.parametrize("typed", slow_but({**LINES, **RARER}, *LINES))
def test_the_next_command_of_every_stage_is_not_refused(typed: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    words = (
        typed.replace("ROWS", str(tmp_path / "rows.jsonl"))
        .replace("NO_TESTS", " ".join(NO_TESTS))
        .split()
    )
    next_commands = of_stages(words, tmp_path / "outputs")
    expected = {**LINES, **RARER}[typed]
    after = {
        stage: line and shlex.split(line)[2].removeprefix("stage=")
        for stage, line in next_commands.items()
    }
    assert {stage: after[stage] for stage in expected} == expected
    assert all(line is None or shlex.split(line)[3:] == words for line in next_commands.values())
