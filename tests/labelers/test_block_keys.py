"""A labeler names the settings of the block that it was made from: that of candidates, or that of compared answers."""

import logging
from pathlib import Path

import pytest

from stages.config.blocks.endpoints import Endpoint
from stages.config.blocks.evaluation import JudgedByJudge
from stages.config.blocks.labels import Ensemble, Judge, Label, OwnLabeler
from stages.config.blocks.models import Own
from stages.config.extras import EXTRAS
from stages.labelers.labeler import Pool
from stages.labelers.making import make_labeler
from stages.store.records import Candidate
from stages.store.source_files import pin
from tests.helpers import TINY, extended_but, refused
from tests.rows import prompt, work

ENDPOINT = "{base_url: 'http://127.0.0.1:9/v1', model: m}"
ENSEMBLE = "GROUP=ensemble BLOCK.members=[{labeler:verifier},{labeler:judge}]"
WHOLE = f"{ENSEMBLE} BLOCK.judge.endpoints=[{ENDPOINT}]".replace(", ", ",").replace(": ", ":")
JUDGE = f"GROUP=judge BLOCK.endpoints=[{ENDPOINT}]".replace(", ", ",").replace(": ", ":")
# what a refusal names, by settings that are refused
NAMED_BY_LINE = {
    "GROUP=judge": "BLOCK.endpoints",
    f"{JUDGE} BLOCK.rubric=no.jinja": "BLOCK.rubric=no.jinja",
    "GROUP=human BLOCK.reasons=[a,a]": "BLOCK.reasons",
    "GROUP=human BLOCK.answered=no.jsonl": "BLOCK.answered=no.jsonl",
    f"{JUDGE} BLOCK.known=README.md": "BLOCK.audit=200",
    "GROUP=reward_model BLOCK.path=no/such/model": "BLOCK.path=no/such/model",
    "GROUP=reward_model": "GROUP=reward_model",
    "GROUP=own": "GROUP=own",
    "GROUP=own BLOCK.own={file:no.py,name:x}": "BLOCK.own.file=no.py",
    "GROUP=ensemble": "GROUP=ensemble",
    ENSEMBLE: "BLOCK.judge.endpoints",
    f"{WHOLE} BLOCK.people=2 BLOCK.human.reasons=[a,a]": "BLOCK.human.reasons",
    f"{WHOLE} BLOCK.reward_model.path=x": "BLOCK.members",
}
if "human" not in EXTRAS:
    NAMED_BY_LINE = {line: named for line, named in NAMED_BY_LINE.items() if "human" not in line}


@pytest.mark.parametrize(("group", "block"), [("label", "label"), ("eval/judged", "eval.judged")])
@pytest.mark.parametrize("line", extended_but(NAMED_BY_LINE, "GROUP=judge", "GROUP=own"))
def test_a_refusal_names_the_block_and_the_group(line: str, group: str, block: str) -> None:
    typed = line.replace("GROUP", group).replace("BLOCK", block).split()
    named = NAMED_BY_LINE[line].replace("GROUP", group).replace("BLOCK", block)
    refusal = refused(*TINY, *typed)
    assert named in refusal
    assert ("eval" in refusal) == (group == "eval/judged")


def test_a_judge_of_answers_names_its_endpoint(tmp_path: Path) -> None:
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", model="m")
    ensemble = Ensemble(judge=Judge(endpoints=[endpoint]), block="eval.judged")
    blocks: dict[str, Label] = {
        "eval.judged": JudgedByJudge(endpoints=[endpoint]).label,
        "eval.judged.judge": ensemble.member_block("judge"),
    }
    for name, block in blocks.items():
        pinned, _ = pin(block, tmp_path / "digests.json")
        [client] = make_labeler(pinned, work(tmp_path)).judges  # type: ignore[attr-defined]
        assert client.name == f"{name}.endpoints[0]"
    assert ensemble.member_block("verifier").block == "eval.judged"


def test_code_of_the_user_is_named_by_its_block(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def big(completions, **_):\n    return [50.0] * len(completions)\n")
    cfg = OwnLabeler(own=Own(file=str(file), name="big"), block="eval.judged")
    cfg, _ = pin(cfg, tmp_path / "cache" / "digests.json")
    candidates = [Candidate.from_text("p", "x", "m", "m", 1)]
    with caplog.at_level(logging.INFO):
        list(make_labeler(cfg, work(tmp_path)).judge_all(Pool([prompt("p")], candidates)))
    assert "eval.judged.own: " in caplog.text
