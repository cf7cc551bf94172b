"""Tests of `stage=chat`: lines that are piped in, the contract's tokens, and the sampler's draws."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.cli.last_run import with_last_run
from stages.commands.chat import SAFE_CONTROLS, SEPARATE, AnswerPrinter, Speaker, talk
from stages.commands.finished_run import last_run
from stages.config.choices import Role
from stages.config.errors import UserError, visible
from stages.models.contract import Continuation, Contract, load_contract, load_or_derive_contract
from stages.models.loading import load_model
from stages.pipeline import provenance
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Request
from stages.store.records import Example, load
from stages.store.store import Store
from tests.helpers import (
    ROOT,
    TINY,
    Chain,
    build,
    command,
    inside,
    nodes,
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
    sampler = HFSampler(load_model(model), contract.stop_ids, 24, 1.0, rows=1)

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
    later, alone = turn([opening, reply, request]), turn([request])
    typed = [opening, "", request, "/new", request, "/quit", "more"]
    output = chat(chain.root, typed, "chat.max_new_tokens=24")
    assert output == f"> {opening}\n{reply}\n> {request}\n{later}\n> /new\n> {request}\n{alone}\n"


def test_models_answer_side_by_side(chain: Chain) -> None:
    prompt = "Name a colour."
    output = chat(chain.root, [prompt, prompt], "chat.side_by_side=true", "chat.max_new_tokens=8")
    assert "\x1b" not in output
    first, second = re.split(r"^> ", output, flags=re.MULTILINE)[1:]
    assert first.strip() == second.strip()  # nothing is remembered
    heading, *lines = [
        re.split("[┃│]", line)[1:-1] for line in first.splitlines() if line[:1] in ("┃", "│")
    ]
    assert [cell.strip() for cell in heading] == ["Base", "SFT", "DPO"]
    # of several lines, where one is long
    answers = ["".join(cells) for cells in zip(*lines, strict=True)]
    cfg = replace(settings("recipe=tiny").chat, max_new_tokens=8)
    for cell, name in zip(answers, ("base", "sft", "dpo"), strict=True):
        speaker = Speaker(chain.folder(name) / "model", cfg)
        answer = speaker.answer([{"role": "user", "content": prompt}])
        assert cell.split() == visible(answer, SAFE_CONTROLS).split() and answer


@pytest.mark.slow
def test_a_line_that_is_not_utf8_is_told_and_the_next_one_answered(chain: Chain) -> None:
    typed = b"Gr\xfc\xdfe\nName a \x1b[31mcolour.\n"
    arguments = (*TINY, f"outputs={chain.root}", "stage=chat", "chat.max_new_tokens=2")
    ran = command(*arguments, input=typed, text=False)
    output = ran.stdout.decode()
    assert (ran.returncode, "Traceback" in ran.stderr.decode()) == (0, False)
    assert "> Gr\\udcfc\\udcdfe\nerror: this line is" in output


@pytest.mark.extended
def test_without_settings_the_run_that_was_last_made_is_asked(chain: Chain) -> None:
    """With settings, the chat uses their run among all runs in the store."""
    line, before = ("stage=chat", f"outputs={chain.root}", "chat.max_new_tokens=8"), chain.count()
    typed = "Name a colour."
    ran = inside(*line, "chat.side_by_side=true", typed=typed)
    assert ran.returncode == 0, ran.stderr
    report = chain.manifest("report")
    assert (
        f"stage=chat uses the last run: report {report['fingerprint']}, {report['command']}"
        in ran.stdout
    )
    answers = chat(chain.root, [typed], "chat.side_by_side=true", "chat.max_new_tokens=8")
    assert ran.stdout[ran.stdout.index("> ") :] == answers
    assert chain.count() == before, "nothing is built"


@pytest.mark.slow
def test_a_run_that_trains_no_policy_is_asked(chain: Chain) -> None:
    other = ("align=none", "sft.epochs=1")
    build(chain.root, *other, "stage=eval")
    ran = inside(
        "stage=chat", f"outputs={chain.root}", "chat.max_new_tokens=8", typed="Name a colour."
    )
    assert (ran.returncode, "last run: eval" in ran.stdout) == (0, True), ran.stderr


@pytest.mark.parametrize("stage", ["plan", "report"])
def test_a_command_without_settings_is_about_the_last_run(
    stage: str, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [f"stage={stage}", f"outputs={chain.root}"]
    assert with_last_run(line) == [*line, "recipe=tiny"]
    assert f"python run.py {' '.join(line)} recipe=tiny\n" in capsys.readouterr().out
    others = ([*line, "dpo.beta=0.2"], line[1:], ["stage=dpo", line[1]], [*line, "recipe=demo"])
    assert [with_last_run(other) for other in others] == [*others]
    nothing = [line[0], f"outputs={chain.root / 'nothing'}"]
    assert with_last_run(nothing) == nothing


def test_code_of_the_last_run_is_typed_again(chain: Chain) -> None:
    manifest = chain.root / "latest" / "report" / "manifest.json"
    command = "python run.py stage=report label=own 'label.own={file: mine.py, name: Mine}'"
    content = json.loads(manifest.read_text()) | {"command": command}
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="code of yours"):
        with_last_run(["stage=report", f"outputs={chain.root}"])


def test_the_only_trained_model_stands_for_a_policy(chain: Chain) -> None:
    for stage in ("report", "eval", "dpo"):
        (chain.root / "latest" / stage).unlink()
    run = last_run(settings(*TINY, "stage=chat"), Store(chain.root))
    assert run.models.keys() == {"base", "sft"}
    assert run.model(Role.policy, "chat.model") == run.models["sft"]
    with pytest.raises(UserError, match="Use base, sft"):
        run.model(Role.control, "chat.model")


@pytest.mark.extended
def test_the_last_run_is_the_one_that_was_used_last(chain: Chain) -> None:
    cfg, store, chain_nodes = settings("stage=chat"), Store(chain.root), nodes(chain.root)
    report, other = chain_nodes["report"], nodes(chain.root, "dpo.beta=0.7")["dpo"]
    build(chain.root, "stage=dpo", "dpo.beta=0.7")
    run = last_run(cfg, store)
    assert (run.name, run.evaluation, run.titles) == (
        str(other),
        None,
        {"base": "Base", "sft": "SFT", "policy": "DPO"},
    )
    assert [run.models[role].fingerprint for role in ("base", "sft", "policy")] == [
        *(chain_nodes[role].fingerprint for role in ("base", "sft")),
        other.fingerprint,
    ]
    build(chain.root, "stage=dpo")  # the finished run that has the report
    run = last_run(cfg, store)
    assert (run.name, str(run.evaluation)) == (str(report), str(chain_nodes["eval"]))


def test_a_run_without_its_evaluation_is_told_and_one_without_pairs_is_found(chain: Chain) -> None:
    cfg, store = settings("stage=chat"), Store(chain.root)
    build(chain.root, "stage=report")
    for name, problem in (("pairs", ""), ("eval", "is not in this store, so its run is not known")):
        folder = chain.folder(name)
        away = folder.rename(folder.with_name("away"))
        try:
            if problem:
                with pytest.raises(UserError, match=problem):
                    last_run(cfg, store)
            else:
                assert last_run(cfg, store).models
        finally:
            away.rename(folder)


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


def test_the_same_conversation_and_seed_have_the_same_answer(built: Path) -> None:
    model = next((built / "base").glob("*/model"))
    cfg = replace(settings("recipe=tiny").chat, max_new_tokens=12, temperature=1.0)
    conversation = [{"role": "user", "content": "Name a colour."}]
    first = Speaker(model, cfg).answer(conversation)
    assert Speaker(model, cfg).answer(conversation) == first
    assert Speaker(model, replace(cfg, seed=1)).answer(conversation) != first


def test_a_conversation_longer_than_the_model_reads_is_told(built: Path) -> None:
    cfg = replace(settings("recipe=tiny").chat, max_new_tokens=2048)
    speaker = Speaker(next((built / "sft").glob("*/model")), cfg)
    conversation = [{"role": "user", "content": "Name a colour."}]
    message = r"of 2048\. Lower chat\.max_new_tokens\."
    with pytest.raises(UserError, match=message):
        speaker.answer(conversation)
    with pytest.raises(UserError, match=r"/new .* chat\.max_new_tokens"):
        speaker.answer([*conversation, {"role": "assistant", "content": "Red."}, *conversation])


@pytest.mark.parametrize("side_by_side", ["true", "false"])
def test_a_prompt_that_is_too_long_is_told_and_the_next_one_answered(
    chain: Chain, side_by_side: str
) -> None:
    long, prompt, options = "colour " * 2100, "Name a colour.", ("chat.max_new_tokens=8",)
    forgotten = ["/new"] if side_by_side == "false" else []  # side by side, nothing is remembered
    typed = [prompt, *forgotten, long, prompt]
    output = chat(chain.root, typed, *options, f"chat.side_by_side={side_by_side}")
    _, alone, *_, error, answered = re.split("^(?:> .*\n)", output, flags=re.MULTILINE)
    assert "of 2048. " in error
    assert answered.strip() == alone.strip() != ""


def test_side_by_side_there_is_no_conversation_to_forget(chain: Chain) -> None:
    output = chat(chain.root, ["/new"], "chat.side_by_side=true")
    assert output == f"> /new\n{SEPARATE}\n", "no model is asked"


@pytest.mark.parametrize(("side_by_side", "offered"), [(True, False), (False, True)])
def test_what_a_terminal_is_offered_is_what_there_is(
    side_by_side: bool,
    offered: bool,
    built: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writer, reader = os.openpty()
    with open(reader, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        os.write(writer, b"/quit\n")
        talk(
            replace(settings("recipe=tiny").chat, side_by_side=side_by_side),
            {"SFT": next((built / "sft").glob("*"))},
        )
    os.close(writer)
    output = capsys.readouterr().out
    assert "/quit" in output
    assert ("/new" in output) == offered


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
    pids, prompts = tmp_path / "pids", ["Name a colour.", "Name another."]
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
