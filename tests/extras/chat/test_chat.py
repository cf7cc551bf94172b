"""Tests of `stage=chat`: lines that are piped in, the contract's tokens, and the sampler's draws."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.config.errors import UserError
from stages.extras.chat.command import AnswerPrinter, Speaker
from stages.models.contract import Continuation, Contract, load_contract, load_or_derive_contract
from stages.models.loading import load_model
from stages.pages.headline import uses_of_model
from stages.pipeline import provenance
from stages.preflight import constraints
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Request
from stages.store.records import Example, load
from tests.helpers import (
    ROOT,
    TINY,
    Chain,
    build,
    inside,
    refused,
    settings,
    stand_in,
)


def chat(root: Path, lines: list[str], *overrides: str) -> str:
    """Return the output of `stage=chat` from the first prompt on."""
    ran = inside(*TINY, f"outputs={root}", "stage=chat", *overrides, typed="\n".join(lines))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout[ran.stdout.index("> ") :]


def greedy(model: Path) -> Callable[[list[str]], str]:
    """Return a function that gives the next turn of a conversation by the batch sampler of `answer`."""
    contract = load_contract(model)
    sampler = HFSampler.of(load_model(model), contract.stop_ids, 24, 1.0, 1)

    def next_turn(conversation: list[str]) -> str:
        roles = ["user", "assistant"] * len(conversation)
        messages = [{"role": r, "content": c} for r, c in zip(roles, conversation, strict=False)]
        [(_, [completion])] = sampler.complete(
            [Request("0", messages, contract.prompt(messages), [0.0], 0)]
        )
        return contract.text(completion.token_ids).strip()

    return next_turn


def test_a_conversation_is_remembered_until_it_is_forgotten(chain: Chain) -> None:
    turn = greedy(chain.folder("dpo") / "model")
    requests = [
        e.messages[-1]["content"] for e in load(chain.folder("data") / "examples.parquet", Example)
    ]
    lines = [text for text in requests if "\n" not in text and text == text.strip()]
    opening = lines[0]
    reply = turn([opening])
    # A request with another answer after the opening than alone.
    request = next(t for t in lines[1:] if turn([opening, reply, t]) != turn([t]))
    later = turn([opening, reply, request])
    alone = turn([request])
    long = "colour " * 2100
    typed = [opening, "", long, request, "/new", request, "/quit", "more"]
    output = chat(chain.root, typed, "chat.max_new_tokens=24")
    assert output.startswith(f"> {opening}\n{reply}\n> colour")
    assert "do not fit in the context of 2048" in output
    assert output.endswith(f"> {request}\n{later}\n> /new\n> {request}\n{alone}\n")


@pytest.mark.extended
def test_a_chat_builds_nothing(tmp_path: Path) -> None:
    message = refused("stage=chat", f"outputs={tmp_path}")
    assert message.startswith("stage=chat: ") and f"{tmp_path}. python run.py " in message
    typed = (*TINY, f"outputs={tmp_path}", "sft.epochs=1")
    ran = inside("stage=chat", *typed)
    assert ran.returncode == 1 and ran.stderr.rstrip().endswith(
        f"Build it first: {provenance.command('dpo', [*typed])}"
    )
    assert refused("stage=chat", *typed, "chat.model=sft").endswith("stage=sft")
    assert not Chain(tmp_path).count()
    build(tmp_path, "stage=sft", "sft.epochs=1")
    line = ("stage=chat", f"outputs={tmp_path}", "chat.max_new_tokens=4")
    ran = inside(*line, typed="Name a colour.")  # of the only trained model
    assert "\n> Name a colour.\n" in ran.stdout
    (tmp_path / "latest" / "sft" / "model" / "config.json").unlink()
    assert "To rebuild it: python run.py" in refused(*line)


def test_answers_depend_on_the_seed_and_a_prompt_that_is_too_long_is_told(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = replace(settings("recipe=tiny").chat, max_new_tokens=12, temperature=1.0)
    model = next((built / "base").glob("*/model"))
    conversation = [{"role": "user", "content": "Name a colour."}]
    speaker = Speaker(model, cfg)
    first = speaker.answer(conversation)
    assert speaker.answer(conversation) == first
    assert Speaker(model, replace(cfg, seed=1)).answer(conversation) != first
    assert first in capsys.readouterr().out
    speaker = Speaker(model, replace(cfg, max_new_tokens=2048))
    with pytest.raises(UserError, match=r"of 2048\. Lower chat\.max_new_tokens\."):
        speaker.answer(conversation)
    with pytest.raises(UserError, match=r"/new .* chat\.max_new_tokens"):
        speaker.answer([*conversation, {"role": "assistant", "content": "Red."}, *conversation])


def test_an_answer_is_printed_as_it_grows(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only whole characters are printed, without the text after the end of the answer."""
    answer = "  - Größe\n\tcc x\ta.c\n  [b]ja[/b] :smile:\n日\x1b[2J本 1\ufe0f\u20e3 👨\u200d👩\u200d👧 ❤\ufe0f"
    for name, form in (("sft", Contract), ("base", Continuation)):
        contract = load_or_derive_contract(next((built / name).glob("*/model")))
        assert type(contract) is form
        printed = AnswerPrinter(contract)
        ids = contract.tokenizer(f"{answer}\n\nmore" if form is Continuation else answer).input_ids
        printed.put(torch.tensor([[5, 6, 7]]))  # the prompt
        for token in ids:
            printed.put(torch.tensor([token]))
        printed.end()
        assert capsys.readouterr().out == f"{answer.strip()}\n".replace("\x1b", "\\x1b")


@pytest.mark.extended
def test_vllm_answers_and_ends_with_the_chat(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    prompts = ["Name a colour.", "Name another."]
    monkeypatch.setenv("SMALL_VLLM", json.dumps({"pids": str(pids)}))
    python = stand_in(ROOT / "tests/samplers/small_vllm.py", tmp_path / "python")
    output = chat(chain.root, prompts, "chat.sampler=vllm", f"chat.runtime.python={python}")
    answers = re.split("^(?:> .*\n)", output, flags=re.MULTILINE)[1:]
    assert len(answers) == 2 and all(text.strip() for text in answers)
    [pid] = pids.read_text().split()
    assert not Path(f"/proc/{pid}").exists()
    line = (
        *TINY,
        f"outputs={chain.root}",
        "stage=chat",
        "chat.sampler=vllm",
        f"chat.runtime.python={sys.executable}",
    )
    assert refused(*line).startswith(f"chat.runtime.python={sys.executable}: vLLM failed: ")


def test_a_role_without_a_model_is_refused(chain: Chain) -> None:
    assert refused(*TINY, f"outputs={chain.root}", "stage=chat", "chat.model=control").startswith(
        "chat.model=control"
    )


def test_an_answer_may_be_long() -> None:
    """The model that is then asked says whether it reads so much."""
    constraints.validate_config(settings(*TINY, "chat.max_new_tokens=3000"))


def test_a_report_suggests_it() -> None:
    assert "python run.py stage=chat" in [typed for _, typed in uses_of_model("python run.py")]
