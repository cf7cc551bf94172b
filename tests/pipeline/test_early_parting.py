"""Preferences whose conversations part before the last turn, through the chain: from a file to pairs, reference, DPO,
evaluation and report."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import label, unpaired
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.store.records import Candidate, Pair, PairLogProbs, load
from stages.store.workspace import StageDir
from tests.helpers import Chain, build, made_once, settings

ROWS = 12


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(i: int) -> dict[str, Any]:
    """Return a row that parts at the first answer, at the user's second turn, or with other numbers of turns."""
    start = user(f"Is number {i} a fruit, a tool or an animal?")
    answer = assistant(f"It is one of the {i}.")
    match i % 3:
        case 0:
            chosen = [start, answer, user("Which?"), assistant("a tool")]
            rejected = [
                start,
                assistant("fruit"),
                user("Really?"),
                assistant("positive, a fruit and a tool"),
            ]
        case 1:
            chosen = [start, answer, user("Name it."), assistant(f"animal {i}")]
            rejected = [start, answer, user("One word!"), assistant("negative")]
        case _:
            chosen = [start, assistant(f"tool {i}")]
            rejected = [
                start,
                assistant("a kite"),
                user("Tool?"),
                assistant("no"),
                user("Fruit?"),
                assistant("no"),
            ]
    return {"chosen": chosen, "rejected": rejected}


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def parted(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tiny chain on a file of pairs that all part early, with its report."""

    def make(root: Path) -> None:
        shutil.copytree(built, root, symlinks=True)
        file = write(root / "early.jsonl", [row(i) for i in range(ROWS)])
        build(root, "stage=report", *overrides(file))

    return Chain(made_once(tmp_path_factory, "parted", make))


def overrides(file: Path) -> tuple[str, ...]:
    return ("label=dataset", f"label.path={file}", "pairs.validation_fraction=0.3")


def folder(parted: Chain, name: str) -> Path:
    return parted.folder(name, *overrides(parted.root / "early.jsonl"))


def held_out(parted: Chain) -> dict[str, float]:
    """Return the margins of the held-out pairs, by id."""
    return {
        m["id"]: m["margin"]
        for m in json.loads((folder(parted, "dpo") / "held_out.json").read_text())
    }


def log_prob(model: Any, ids: list[int], marks: list[bool]) -> float:
    """Return the sum of log-probs of the marked tokens, from the logits of one plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    scores = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    return float(scores[torch.tensor(marks[1:])].sum())


def marked(scored: PairLogProbs, side: str) -> tuple[list[int], list[bool]]:
    ids = getattr(scored, f"{side}_ids")
    mask = getattr(scored, f"{side}_mask")
    return scored.prompt_ids + ids, [False] * len(scored.prompt_ids) + mask


def test_the_reference_scores_the_assistants_tokens_from_where_they_part(parted: Chain) -> None:
    model = load_model(folder(parted, "sft") / "model").eval()
    contract = load_contract(folder(parted, "sft") / "model")
    pairs = {p.id: p for p in load(folder(parted, "pairs") / "pairs.parquet", Pair)}
    given = {json.dumps([each["chosen"], each["rejected"]]) for each in map(row, range(ROWS))}
    assert {
        json.dumps([p.prompt + p.chosen, p.prompt + p.rejected]) for p in pairs.values()
    } == given
    for scored in load(folder(parted, "reference") / "logprobs.parquet", PairLogProbs):
        shared = 1 if pairs[scored.id].chosen[0] == pairs[scored.id].rejected[0] else 0
        for side in ("chosen", "rejected"):
            ids, marks = marked(scored, side)
            answers = [
                t["content"]
                for t in getattr(pairs[scored.id], side)[shared:]
                if t["role"] == "assistant"
            ]
            trained = contract.tokenizer.decode(
                [i for i, mark in zip(ids, marks, strict=True) if mark]
            )
            assert trained == "".join(f"{answer}<|im_end|>" for answer in answers)
            log_probs = getattr(scored, f"{side}_logps")
            assert len(log_probs) == sum(marks)
            assert sum(log_probs) == pytest.approx(log_prob(model, ids, marks), abs=1e-3)


def test_the_trainers_loss_is_the_one_computed_by_hand(parted: Chain) -> None:
    """Check -log σ(β (log-ratio of chosen - log-ratio of rejected)) of held-out pairs, from plain forwards."""
    reference, policy = (
        load_model(folder(parted, name) / "model").eval() for name in ("sft", "dpo")
    )
    cfg = json.loads((folder(parted, "dpo") / "manifest.json").read_text())["settings"]
    margins = held_out(parted)
    losses = []
    for scored in load(folder(parted, "reference") / "logprobs.parquet", PairLogProbs):
        if scored.id in margins:
            ratios = [
                log_prob(policy, *marked(scored, side)) - log_prob(reference, *marked(scored, side))
                for side in ("chosen", "rejected")
            ]
            margin = cfg["beta"] * (ratios[0] - ratios[1])
            assert margins[scored.id] == pytest.approx(margin, abs=1e-3)
            losses.append(math.log1p(math.exp(-margin)))
    metrics = json.loads((folder(parted, "dpo") / "manifest.json").read_text())["metrics"]
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_kto_leaves_out_completions_of_several_turns(tmp_path: Path) -> None:
    rows = [row(i) for i in range(ROWS)]
    rows += [
        {"prompt": [user(f"q{i}")], "chosen": [assistant("2")], "rejected": [assistant("1")]}
        for i in range(4)
    ]
    file = write(tmp_path / "early.jsonl", rows)
    cfg = settings("recipe=tiny", "align=kto", "label=dataset", f"label.path={file}")
    labelled, out = (StageDir(tmp_path / name, lambda m, s: None) for name in ("label", "unpaired"))
    for each in (labelled, out):
        each.path.mkdir()
    label.run(cfg.label, {}, labelled)
    metrics = unpaired.run(cfg.unpaired, {"judged": labelled.path}, out)
    several = sum(
        c.continuation is not None for c in load(labelled.path / "candidates.parquet", Candidate)
    )
    assert several == 2 * ROWS - ROWS // 3, "a third of the chosen sides are one turn"
    assert metrics["left_out"] == {unpaired.SEVERAL_TURNS: several}
    [warning] = [line for line in out.warnings if "several turns" in line]
    assert "early.jsonl" in warning
    assert "align=dpo" in warning
