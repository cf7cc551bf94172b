"""Runs on a file of prompts of the user's, in three languages: the best of a model's own answers as demonstrations,
and candidates, labels and DPO."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.cli import recipes
from stages.cli.typed_line import read_values
from stages.config.errors import UserError
from stages.store.records import Example, load
from tests.helpers import Chain, build, build_node, nodes, settings
from tests.labelers.test_reward_model import model  # noqa: F401

WORDS = ("tea", "rain", "salt", "wood", "lamp", "ink", "sand", "milk")
ASKED = (
    "Is {} good?",
    "Ist {} gut oder schlecht? Antworte mit einem Wort.",
    "{}好吗?请用一个词回答。",
)
SELECTING = ("recipe=rejection_sampling", "select.max_new_tokens=12")
LENGTHS = """
from stages.labelers.labeler import Labeler
from stages.store.records import Judgement

class Length(Labeler):
    name = "length"

    def judge(self, prompt, candidates):
        for c in candidates:
            yield Judgement(prompt.id, self.name, c.candidate_id, score=min(len(c.text), 20) / 20)
"""


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Return a file of prompts, with a right answer that only a check reads."""
    return write_prompts(tmp_path, WORDS)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Return a file of 201 such prompts."""
    return write_prompts(tmp_path, [f"{WORDS[i % len(WORDS)]} {i}" for i in range(67)])


def write_prompts(folder: Path, words: Sequence[str]) -> Path:
    file = folder / "prompts.jsonl"
    rows = [
        {"prompt": question.format(word), "answer": "positive" if i % 2 else "negative"}
        for question in ASKED
        for i, word in enumerate(words)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def line(chain: Chain) -> tuple[str, ...]:
    """Return the command line of a model that can answer in few tokens."""
    model_path = f"model.path={chain.folder('sft') / 'model'}"
    return (model_path, "tracker=none", "precision=fp32", "answer.max_new_tokens=12")


def alone(prompts: Path) -> Path:
    """Write the prompts without their answers, and return the file."""
    file = prompts.with_name("alone.jsonl")
    rows = map(json.loads, prompts.read_text().splitlines())
    file.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return file


def test_a_check_selects_answers_and_its_references_are_no_demonstrations(
    chain: Chain, many: Path, line: tuple[str, ...]
) -> None:
    overrides = (
        *line,
        *SELECTING,
        f"data.path={many}",
        "data.file.check=label",
        "sft.batch_size=2",
    )
    rows = {row["prompt"]: row["answer"] for row in map(json.loads, many.read_text().splitlines())}

    build_node(chain.root, "eval", *overrides)
    selected = load(chain.folder("select", *overrides) / "examples.parquet", Example)
    chosen = [e for e in selected if e.split in ("sft", "validation")]
    assert chosen
    for example in chosen:
        assert str(example.reference).strip().lower() == rows[example.messages[-1]["content"]]
    data = load(chain.folder("data", *overrides) / "examples.parquet", Example)
    assert {e.reference is None for e in data if e.split == "sft"} == {True}
    assert {e.reference for e in data if e.split == "test"} <= {"positive", "negative"}
    assert {e.task for e in data} == {many.name}, "no generated task"
    verdict = chain.manifest("eval", *overrides)["metrics"]["summary"]
    assert re.search(rf"on \d+ held-out prompts of {many.name}", verdict)


def verdict_of(chain: Chain, *overrides: str) -> str:
    """Build the report, and return the first sentence of its verdict."""
    build(chain.root, *overrides)
    data = load(chain.folder("data", *overrides) / "examples.parquet", Example)
    assert {e.source for e in data} == {"alone.jsonl"}, "no generated prompt"
    return str(chain.manifest("eval", *overrides)["metrics"]["summary"])


def test_candidates_of_prompts_are_labelled_trained_and_judged(
    chain: Chain,
    prompts: Path,
    line: tuple[str, ...],
    model: Path,  # noqa: F811
) -> None:
    overrides = (
        *(*line, "recipe=from_prompts", f"data.path={alone(prompts)}", "sample.max_new_tokens=12"),
        *("label=reward_model", f"label.path={model}", "dpo.batch_size=2"),
    )
    verdict = verdict_of(chain, *overrides)
    data = load(chain.folder("data", *overrides) / "examples.parquet", Example)
    held_out = sum(e.split == "test" for e in data)
    assert f" of {held_out} comparisons" in verdict
    judged = nodes(chain.root, *overrides)["judged_sft"].config
    assert (judged.labeler, judged.path, judged.block) == (
        "reward_model",
        str(model),
        "eval.judged",
    )


def test_a_reward_of_ones_own_is_learnt_and_told_on_held_out_prompts(
    chain: Chain, prompts: Path, line: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "length.py").write_text(LENGTHS)
    overrides = (
        *(*line, "recipe=own_reward", f"data.path={alone(prompts)}"),
        f"label.own={{file: {tmp_path / 'length.py'}, name: Length}}",
        *("grpo.batch_size=2", "grpo.completions=2", "grpo.max_new_tokens=12"),
    )
    assert "comparisons" in verdict_of(chain, *overrides)


def test_the_file_of_a_recipe_for_preferences_is_its_labels() -> None:
    file = "docs/examples/preferences.jsonl"
    cfg = settings("recipe=from_preferences", f"data.path={file}")
    assert (cfg.label.path, cfg.data.sources, cfg.data.path) == (file, [], None)
    assert settings("recipe=from_preferences", f"label.path={file}").data.sources == []
    line = ["recipe=from_preferences", "scale=toy"]
    assert settings(*line, f"data.path={file}").label.path == file, "what is typed wins"


def test_a_file_does_not_join_the_sources_of_a_recipe() -> None:
    line = ["recipe=zephyr_7b", "data.path=mine.jsonl"]
    with pytest.raises(UserError, match=r"data\.sources=\[\]"):
        recipes.register(read_values(line))
    recipes.register(read_values([*line, "data.sources=[]"]))
    recipes.register({})
