"""Every error that a file's content can raise names settings, and these settings read the file or lead to another error.
A sentence that no setting helps may stand in their place."""

import ast
import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from stages import label, sample, source
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.formats.readers.row import BadRow, ChangesMeaning, NeedsSetting
from tests.helpers import nodes
from tests.rows import work

# Settings in a message; those with one space between them belong together
SETTING = r"(?:'[\w.\[\]]+=[^']*'|(?<![\w'.\]])[a-z][\w.]*=[^\s,;:{\[']+(?<![.?]))"
WAY = re.compile(rf"{SETTING}(?: {SETTING})*")
# a sentence that no setting helps, or a command that writes another file
NO_WAY = re.compile(r"no setting|nothing is learnt|sed -E|jq -c|pdftotext", re.IGNORECASE)
MOST_STEPS = 6
STAGES = {"data": source, "label": label, "sample": sample}
LINES = {
    "data": "data=file data.path={}",
    "label": "label=dataset label.path={}",
    "sample": "sample=file sample.file={} label=judge label.endpoints=[{{base_url:http://localhost:1/v1,model:m}}]",
}
# the settings with which a command reads a file by another node
STARTS = {"data": "data=file", "label": "label=dataset", "sample": "sample=file"}
NODES = {"data": "data_source_1", "label": "label", "sample": "sample"}

ASK, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
OTHER = {"role": "assistant", "content": "c"}
NAMES = ("lamp", "chair", "spoon", "door")


def each(**columns: Any) -> list[dict[str, Any]]:
    """Return rows with these columns; `{}` in a text stands for another name in each."""
    return [{key: filled(value, name) for key, value in columns.items()} for name in NAMES]


def filled(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("{}", name)
    if isinstance(value, list):
        return [filled(item, name) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, name) for key, item in value.items()}
    return value


def talk(*turns: Any, **columns: Any) -> list[dict[str, Any]]:
    return each(messages=[{"role": "user", "content": "Ask {}."}, *turns], **columns)


def varied(column: str, values: list[Any], **columns: Any) -> list[dict[str, Any]]:
    return [
        {**row, column: value}
        for row, value in zip(each(**columns) * len(values), values, strict=False)
    ]


PAIR = {"prompt": "Ask {}.", "chosen": "Good {}.", "rejected": "Bad {}."}
EXCHANGE = {"prompt": "Ask {}.", "completion": "Say {}."}
SIDES = {"prompt": "Ask {}.", "response_a": "Good {}.", "response_b": "Bad {}."}
SEVERAL = {"prompt": "Ask {}.", "completions": ["Good {}.", "Bad {}."]}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{ }"}}],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "2"}

# what a file holds, by the node that reads it, with the settings that are typed with it
CASES: list[tuple[str, Any, str]] = [
    # columns without known names
    ("label", each(id=1, customer_message="Ask {}.", language="en", chosen="Good.", rejected="Bad."), ""),
    ("label", each(frage="Was ist {}?", bevorzugt="Gut.", abgelehnt="Schlecht."), ""),
    ("label", each(consigne="Qui {}", choisie="Bien", rejetee="Mal"), ""),
    ("label", each(pregunta="Que {}", elegida="Bien", rechazada="Mal"), ""),
    ("label", each(domanda="Che {}", scelta="Bene", rifiutata="Male"), ""),
    ("label", each(prompt="Ask {}.", chosen="Good", rejected_1="Bad", rejected_2="Worse"), ""),
    ("label", each(chosen="The {} is useful.", rejected="The {} is a song."), ""),
    ("label", each(chosen="Useful {}.", rejected="A song {}."), ""),
    ("label", each(x="The {}.", y="One {}.", z="Two {}."), ""),
    ("label", varied("wahl", [1, 2, 1, 2], frage="Was {}", antwort_1="Gut", antwort_2="Schlecht"), ""),
    ("label", varied("urteil", ["gut", "schlecht"], frage="Was {}", antwort="So {}."), ""),
    ("label", each(frage="Was {}", antworten=["Gut {}", "Nein {}"], noten=[3, 1]), ""),
    ("label", each(meta={"q": "Ask {}."}, good="Yes {}.", bad="No {}."), ""),
    ("label", each(customerMessage="Ask {}.", preferredReply="Yes {}.", rejectedReply="No {}."), ""),
    ("data", each(customer_message="Ask {}.", chosen="Good {}.", rejected="Bad {}."), ""),
    ("data", each(frage="Was ist {}?", antwort="Gut {}."), ""),
    ("data", each(kunde="Was ist {}?", berater="Gut {}."), ""),
    ("data", each(inhalt="Was ist {}."), ""),
    ("data", each(unterhaltung=[ASK, REPLY]), ""),
    ("data", each(prmopt="Ask {}.", compltion="Say {}."), ""),
    ("data", each(input_ids=[1, 2], labels=[1, 2]), ""),
    ("data", each(input_ids=[1, 2], text="So {}."), ""),
    ("data", each(request={"messages": [ASK]}, response={"choices": [{"message": REPLY}]}), ""),
    ("data", each(input=[{"type": "message", **ASK}], output=[{"type": "message", **REPLY}]), ""),
    ("label", each(context="Ask {}.", win="Good {}.", lose="Bad {}."), ""),
    ("label", each(x="Ask {}.", y_w="Good {}.", y_l="Bad {}."), ""),
    ("label", each(messages_chosen=[ASK, REPLY], messages_rejected=[ASK, OTHER]), ""),
    ("label", varied("score", [0.1, 0.7], **EXCHANGE), ""),
    ("label", [{"title": f"Ask {i}.", "comments": [{"body": f"g{i}", "ups": i}, {"body": f"b{i}", "ups": 0}]} for i in range(1, 5)], ""),
    ("data", each(number=1, size=2), ""),
    ("data", each(prompt="Ask {}.", reply="Say {}."), ""),
    ("data", each(prompt="Ask {}."), ""),
    ("data", each(prompt="Ask {}."), "data.file.check=label data.file.splits={preference:1.0}"),
    ("data", each(text="What {}.", label="a"), ""),
    ("data", each(satz="What {}.", label="good"), "data.file.task=sentiment"),
    ("data", each(satz="What {}."), "data.file.task=sentiment"),
    ("data", varied("label", [0, 1], text="What {}."), "data.file.task=sentiment"),
    ("data", each(text="What {}.", label=["a", "b"]), "data.file.task=sentiment"),
    ("data", each(frage="Was {}", antwort="So"), "data.file.columns={promt:frage}"),
    ("data", each(frage="Was {}", antwort="So"), "data.file.columns={prompt:fragen}"),
    ("data", each(meta={"frage": "Was {}"}, antwort="So"), "data.file.columns={prompt:meta.fragen,completion:antwort}"),
    ("data", each(frage="Was {}", antwort="So"), "data.file.columns={prompt:frage.x,completion:antwort}"),
    ("data", each(**EXCHANGE), "data.file.format=scored"),
    ("data", each(**PAIR), ""),
    ("data", each(**SEVERAL, scores=[2, 1]), ""),
    ("data", varied("preference", ["a", "b"], **SIDES), ""),
    ("data", each(question="Which {}?", A="x", B="y", answer="A"), ""),
    ("data", each(question="Which {}?", options=["x", "y"], answer="x"), ""),
    ("data", each(problem="Ask {}.", solution="So: {}", answer="{}"), ""),
    # columns that change what a row means
    ("data", each(**EXCHANGE, image="1.png"), ""),
    ("data", each(**EXCHANGE, documents=["x {}"]), ""),
    ("data", each(**EXCHANGE, weight=0.5), ""),
    ("data", talk(REPLY, feedback="poor"), ""),
    ("data", talk({**REPLY, "masked": False}), ""),
    ("data", each(**EXCHANGE, reasoning="on"), ""),
    ("data", each(prompt="Ask {}.", response="b", deep_thinking="so"), ""),
    ("data", each(**EXCHANGE, is_safe=False), ""),
    ("data", each(**EXCHANGE, status="rejected"), ""),
    ("data", varied("label", [0, 1], **EXCHANGE), ""),
    ("data", varied("label", [0.1, 0.9], **EXCHANGE), ""),
    ("data", varied("quality", [1, 2, 3], **EXCHANGE), ""),
    ("data", each(**EXCHANGE, label=0.5), "data.file.format=answered"),
    # rows
    ("data", talk({"role": "assistant", "content": "<think>so"}), "data.file.reasoning=strip"),
    ("data", each(prompt="Ask {}.", completion="<think>so"), "data.file.reasoning=strip"),
    ("data", talk({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "See."}]}), ""),
    ("data", talk({"role": "assistant", "content": [{"type": "server_tool", "x": 1}, {"type": "text", "text": "See."}]}), ""),
    ("data", each(prompt=[{"type": "image"}, {"type": "text", "text": "What {}?"}], completion="Say."), ""),
    ("data", talk(CALL, {**RESULT, "content": [{"type": "audio", "data": "x"}, {"type": "text", "text": "2"}]}, REPLY), ""),
    ("data", talk({"role": "assistant", "content": [{"inlineData": {"data": "x"}}, {"text": "See."}]}), ""),
    ("data", talk(CALL, {"role": "user", "content": "b"}, REPLY), ""),
    ("data", talk(REPLY, {"role": "user", "content": "b"}, CALL, ASK, REPLY), ""),
    ("data", talk(REPLY, REPLY), ""),
    ("data", talk(REPLY, {"role": "system", "content": "s"}, ASK, REPLY), ""),
    ("data", talk(REPLY, ASK), ""),
    ("data", each(messages=[REPLY, OTHER]), ""),
    ("data", each(messages=[{"role": "nutzer", "content": "Was {}"}, {"role": "assistent", "content": "So."}]), ""),
    ("data", each(messages=[{"role": "A", "content": "What {}"}, {"role": "B", "content": "So."}]), ""),
    ("data", each(messages=[{"rolle": "x", "content": "What {}"}, REPLY]), ""),
    ("data", each(messages=[ASK, "{}"]), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "nachricht": "So."}]), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": {"x": 1}}]), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": ""}]), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": "\ud800"}]), ""),
    ("data", each(messages=[{"role": "system"}, {"role": "system"}]), ""),
    ("data", each(messages="[{broken"), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": json.dumps([ASK])}]), ""),
    ("data", each(messages=[json.dumps(json.dumps([ASK, REPLY]))] * 2), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": [{"type": "tool_result", "content": "2"}]}]), ""),
    ("data", each(messages=[{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, REPLY]), ""),
    ("data", each(messages=[ASK, {"role": "assistant", "content": [{"type": "text", "text": 3}]}]), ""),
    ("data", talk({"role": "assistant", "tool_calls": "x{"}), ""),
    ("data", talk({"role": "assistant", "tool_calls": [{"name": "f"}]}), ""),
    ("data", talk({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "1, 2"}]}), ""),
    ("data", talk(REPLY, tools="x{"), ""),
    ("data", talk(REPLY, tools=["x"]), ""),
    ("data", each(**EXCHANGE, history=[["x"]]), ""),
    ("data", talk(REPLY, system="One."), ""),
    ("data", each(messages=[{"role": "system", "content": "s"}, ASK, REPLY], system="t"), ""),
    ("data", each(prompt=[ASK, REPLY, ASK], input="x", completion="c"), ""),
    ("data", each(prompt=["a {}", "b"], completion="c"), ""),
    ("data", each(prompt=[ASK, REPLY], completion="c"), ""),
    ("data", each(prompt="Ask {}.", completion=[ASK, REPLY]), ""),
    ("data", varied("completion", [0, 1], prompt="Ask {}."), ""),
    ("data", varied("completion", [True, False], prompt="Ask {}."), ""),
    ("data", each(prompt="Ask {}.", completion={"text": "Say.", "score": 1}), ""),
    ("data", each(**EXCHANGE), "data.file.splits={test:1.0} data.file.check=number"),
    ("data", each(text="So."), "data.file.splits={test:1.0}"),
    ("data", each(image="x", prompt="<image>", completion="c"), "data.file.columns={image:null}"),
    ("data", [*each(**EXCHANGE), {"prompt": "", "completion": "x"}], ""),
    ("data", [*each(**EXCHANGE), "text"], ""),
    ("data", each(text="USER: {} ASSISTANT: <functioncall> {x}"), ""),
    # preferences
    ("label", varied("preference", [0, 1], **SIDES), ""),
    ("label", varied("preference", [-1.5, 0, 0.3, 2], **SIDES), ""),
    ("label", varied("preference", ["x", "y", "z"], **SIDES), ""),
    ("label", [*varied("preference", ["a", "b", "a", "b"], **SIDES) * 60, *varied("preference", ["x"], **SIDES)], "label.max_failed=0"),
    ("label", [*varied("preference", ["a", "b", "a", "b"], **SIDES) * 60, *varied("preference", [7], **SIDES)], "label.max_failed=0"),
    ("label", varied("preference", [i / 100 for i in range(4)], **SIDES), ""),
    ("label", [{**row, "preference": i / 10} for i, row in enumerate(each(**SIDES) * 3)], ""),
    ("label", each(**SIDES, preference=[1, 2, 3]), ""),
    ("label", each(prompt="Ask {}.", chosen=3, rejected=4), ""),
    ("label", each(**{**PAIR, "rejected": "Good {}."}), ""),
    ("label", each(prompt="Ask {}.", chosen=[ASK, REPLY], rejected=[ASK, OTHER]), ""),
    ("label", each(prompt=[ASK, REPLY], chosen=[ASK, REPLY], rejected=[ASK, OTHER]), ""),
    ("label", each(prompt=[REPLY, ASK], chosen="x", rejected="y"), ""),
    ("label", each(chosen=[ASK, REPLY, ASK], rejected=[ASK, OTHER, ASK]), ""),
    ("label", each(chosen=[ASK, REPLY, ASK, REPLY], rejected=[ASK, REPLY]), ""),
    ("label", each(chosen=[ASK, REPLY], rejected=[{"role": "user", "content": "z"}, OTHER]), ""),
    ("label", each(chosen=[ASK, REPLY], rejected=[[ASK, OTHER], [ASK, REPLY, ASK, OTHER]]), ""),
    ("label", each(chosen=[ASK, REPLY], rejected=[ASK, OTHER], input="zzz"), ""),
    ("label", each(chosen=[ASK, REPLY], rejected="No."), ""),
    ("label", each(prompt="Ask {}.", chosen="response_a", rejected="other", response_a="x", response_b="y"), ""),
    ("label", each(**SEVERAL), ""),
    ("label", each(prompt="Ask {}.", completions=[{"text": "Good {}.", "mark": 3}, {"text": "Bad {}.", "mark": 1}]), ""),
    ("label", each(prompt="Ask {}.", completions=[{"words": "Good {}.", "score": 3}, {"words": "Bad {}.", "score": 1}]), "label.format=scored"),
    ("label", each(**SEVERAL, scores=[1, 2, 3]), ""),
    ("label", each(**SEVERAL, scores=["4/5", "3/5"]), ""),
    ("label", each(**SEVERAL, scores=["N/A", 2]), ""),
    ("label", each(**SEVERAL, scores=[1e301, 2]), ""),
    ("label", each(**SEVERAL, scores=[4, 4]), ""),
    ("label", each(**EXCHANGE, label=True), ""),
    ("label", each(**EXCHANGE, label=False), ""),
    ("label", varied("label", [0, 1], **EXCHANGE), ""),
    ("label", [*varied("label", [True, False, True, False], **EXCHANGE) * 60, *varied("label", ["perhaps"], **EXCHANGE)], "label.max_failed=0"),
    ("label", [{**row, "label": i} for i, row in enumerate(each(**EXCHANGE) * 3)], ""),
    ("label", talk(label=True), ""),
    # one row among others
    ("data", [*talk(REPLY) * 3, *talk()[:1]], "data.max_bad=0"),
    ("data", [*talk(REPLY) * 3, *talk()[:1]], "data.max_bad=0 data.file.splits={test:1.0} data.file.check=label"),
    ("data", talk(REPLY)[:1] + each(messages=[ASK, 3]), ""),
    ("data", each(messages=[{**ASK, "weight": 1}, REPLY]), ""),
    ("data", each(messages=[{**ASK, "name": "Ada"}, REPLY]), ""),
    ("data", each(**EXCHANGE, history=3), ""),
    ("data", ["text", "text"], ""),
    ("data", each(message_id="{}", parent_id=None, text="So.", role="prompter") * 2, ""),
    ("data", [{"message_id": "x", "parent_id": "x", "text": "So.", "role": "prompter"}], ""),
    ("data", each(question="Q {}?", options={"label": ["A"], "text": ["x", "y"]}, answer="A"), "data.file.task=multiple_choice"),
    ("data", each(question="Q {}?", options=["x", "y"], answer="1")[:1], "data.file.task=multiple_choice"),
    ("data", each(question="Q {}?", options=["x", "y"], answer="z"), "data.file.task=multiple_choice"),
    ("data", varied("label", ["good", "-1"], text="What {}."), "data.file.task=sentiment"),
    ("label", [*varied("label", [True, False, True, False], **EXCHANGE) * 60, {"completion": "x", "label": True}], "label.max_failed=0"),
    ("label", [*each(chosen="The {} is good.", rejected="The {} is bad."), {"chosen": "x", "rejected": "y"}], "label.format=implicit"),
    ("label", each(chosen=[ASK, REPLY, ASK, REPLY], rejected=[[ASK, OTHER], [ASK, REPLY, ASK, OTHER]]), ""),
    ("label", each(prompt=[{"role": "user", "content": "z"}], chosen=[ASK, REPLY], rejected=[ASK, OTHER]), ""),
    ("label", each(prompt="a", chosen=[ASK, REPLY], rejected=[ASK, OTHER], input="zzz"), ""),
    ("label", [{**row, "preference": f"w{i}"} for i, row in enumerate(each(**SIDES) * 3)], ""),
    ("label", each(response_a=[ASK, REPLY, ASK, REPLY], response_b=[ASK, OTHER, ASK, REPLY], preference="a", turn=2), ""),
    ("label", each(**PAIR), "label.format=chat"),
    ("label", [*each(**SEVERAL, scores=[2, 1]) * 60, *each(**SEVERAL)[:1]], "label.max_failed=0"),
    ("sample", [*each(**SEVERAL), {"prompt": "x", "completions": [{"x": "y"}]}], ""),
    ("sample", [*talk(REPLY) * 3, *talk()[:1]], ""),
    # candidates
    ("sample", each(prompt="Ask {}.", reply="Say {}."), ""),
    ("sample", each(frage="Was {}", antworten=["Gut", "Nein"]), ""),
    ("sample", talk({**REPLY, "weight": 0}, ASK, REPLY), ""),
    ("sample", each(prompt="Ask {}.", completions=[{"x": 1}]), "sample.columns={completions:completions}"),
    ("sample", talk(REPLY, ASK), ""),
]  # fmt: skip

# files, by name: what their bytes are
FILES: list[tuple[str, str, bytes, str]] = [
    ("data", "rows.jsonl", '{"prompt": "Größe", "completion": "groß"}\n'.encode("cp1252"), ""),
    ("data", "rows.csv", "prompt,completion\nGröße,groß\n".encode("cp1252"), ""),
    ("data", "rows.txt", b"One.\n\nTwo.\n", ""),
    ("data", "rows.jsonl", b'{"prompt": "a", "completion": "b", "x": NaN}\n' * 2, ""),
    ("data", "rows.jsonl", b'{"prompt": "a", "prompt": "b"}\n' * 2, ""),
    ("data", "rows.jsonl", b"// a\n" * 2, ""),
    ("data", "rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n{}\n", ""),
    ("data", "rows.jsonl", b'{"a": ' + b"[" * 100000 + b"\n{}\n", ""),
    ("data", "rows.jsonl", b"", ""),
    ("data", "rows.jsonl", b"%PDF-1.4\n", ""),
    ("data", "rows.jsonl.gz", b"\x1f\x8b\x08 broken", ""),
    ("data", "rows.jsonl", '{"prompt": "Größe", "completion": "b"}\n'.encode() + b'{"prompt": "Gr\xf6sse", "completion": "b"}\n', ""),
    ("data", "rows.jsonl", b'{"prompt": "Gr\xf6\xdfe", "completion": "b"}\n', "data.file.encoding=shift_jis"),
    ("data", "rows.jsonl", b'{"prompt": "a", "completion": "b"}\n{"a": ' + b"9" * 5000 + b"}\n", ""),
    ("data", "rows.json", b'[{"prompt": "a"},\n x]', ""),
    ("data", "rows.json", b'{"prompt": "a",\n "x" }', ""),
    ("data", "rows.json", b'{"a": {"b": 1},\n "c": {"d": 2}}', ""),
    ("data", "rows.json", b'{"name": "x",\n "list": [{"prompt": "a", "completion": "b"}],\n "more": [{"x": 1}]}', ""),
    ("data", "rows.csv", b'"pro"mpt,completion\na,b\n', ""),
    ("data", "rows.csv", b"prompt,prompt\na,b\n", ""),
    ("data", "rows.csv", b"prompt,completion\na,b,c\nd,e\n", ""),
    ("data", "rows.csv", b'prompt,completion\na,"b\n', ""),
    ("data", "rows.csv", ",".join(f"c{i}" for i in range(10_001)).encode(), ""),
    ("data", "rows.jsonl", json.dumps({"prompt": "a" * 1_100_000, "completion": "b"}).encode() + b"\n{}\n", "data.max_line=1"),
]  # fmt: skip


def as_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# each input: the node, the file's name and content, and the settings
INPUTS = [(kind, "rows.jsonl", as_lines(rows), typed) for kind, rows, typed in CASES] + FILES
READING = (
    "stages/formats/**/*.py",
    "stages/source.py",
    "stages/labelers/dataset.py",
    "stages/samplers/candidate_file.py",
)
ERRORS = (UserError, BadRow, ChangesMeaning, NeedsSetting)
NAMES_OF_ERRORS = [kind.__name__ for kind in ERRORS]
# These need more than one file of text: a hub, a folder, a table, a file of phrasings, or prompts of the data. The mark
# of a chat template in running text has tests of its own.
WITHOUT_INPUT = [
    "formats/phrased.py:read_task:0",
    "formats/phrased.py:parse_task:0",
    "formats/phrased.py:parse_task:1",
    "formats/phrased.py:parse:0",
    "formats/phrased.py:parse:1",
    "formats/readers/files.py:refuse_splits:0",
    "formats/readers/files.py:load_hub_dataset:0",
    "formats/readers/files.py:rows_of:1",
    "formats/readers/json_text.py:parse_value:1",
    "formats/readers/synthetic.py:only_one:0",
    "formats/readers/synthetic.py:read_models:0",
    "formats/readers/synthetic.py:response_error:0",
    "formats/readers/synthetic.py:response_error:1",
    "formats/readers/synthetic.py:response_error:2",
    "formats/readers/synthetic.py:failed_rows:0",
    "formats/readers/tabular.py:single_row:0",
    "formats/texts.py:parse:0",
    "formats/turns.py:json_text:0",
    "formats/turns.py:turn_objects:0",
    "formats/turns.py:turn_objects:1",
    "samplers/candidate_file.py:read_candidates:0",
    "samplers/candidate_file.py:validate_row:2",
]


def error_of(kind: str, file: Path, typed: list[str]) -> str:
    """Return the error with which a node reads a file under these settings; empty if the node reads it."""
    folder = Path(tempfile.mkdtemp(dir=file.parent))
    try:
        node = nodes(folder, *LINES[kind].format(file).split(), *typed)[NODES[kind]]
        STAGES[kind].run(node.config, {}, work(folder / node.fingerprint))
    except UserError as error:
        return str(error).partition(" They are listed in ")[0]  # a folder of this node
    return ""


def ways_in(message: str) -> list[list[str]]:
    """Return the settings of each way out in a message, which may begin with the setting that is wrong."""
    _, _, advice = message.partition(": ")
    return [shlex.split(way[0]) for way in WAY.finditer(advice)]


def require_ways(kind: str, file: Path, typed: list[str]) -> list[str]:
    """Return the first error, and those behind its first way out, after requiring that each way out leads on."""
    errors = list[str]()
    for _ in range(MOST_STEPS):
        message = error_of(kind, file, typed)
        if not message:
            break
        assert message not in errors, f"{typed} leads back"
        errors.append(message)
        ways = [way for way in ways_in(message) if set(way).isdisjoint(typed)]
        if not ways:
            assert NO_WAY.search(message), message
            break
        for way in ways[1:]:
            assert error_of(kind, file, [*typed, *way]) != message, way
        other_kinds = [each for each in LINES if each != kind and STARTS[each] in ways[0]]
        kind = other_kinds[0] if other_kinds else kind
        typed = [*typed, *ways[0]]
    else:
        raise AssertionError(f"{errors}")
    return errors


@dataclass
class Walk:
    """The error of each input whose settings do not lead on, and the places in the code at which errors were made."""

    faults: dict[int, str]
    places: set[tuple[str, int]]


@contextmanager
def noted_places(places: set[tuple[str, int]]) -> Iterator[None]:
    """Note the place of every error of these classes that is made."""
    with ExitStack() as stack:
        for kind in ERRORS:
            make = kind.__init__

            def note(error: Any, *arguments: Any, make: Any = make) -> None:
                caller = sys._getframe(1)
                places.add((caller.f_code.co_filename, caller.f_lineno))
                make(error, *arguments)

            stack.enter_context(mock.patch.object(kind, "__init__", note))
        yield


def walk_inputs(folder: Path) -> Walk:
    """Follow the settings in the errors of all inputs, whose files stand in one folder, so that a command is composed
    once."""
    walk = Walk({}, set())
    with noted_places(walk.places):
        for number, (kind, name, content, typed) in enumerate(INPUTS):
            file = folder / name
            file.write_bytes(content)
            try:
                require_ways(kind, file, typed.split())
            except Exception as error:
                walk.faults[number] = f"{type(error).__name__}: {error}"
    return walk


@pytest.mark.extended
def test_every_error_of_a_file_has_an_input_and_settings_that_lead_on(tmp_path: Path) -> None:
    """In one test, so that the inputs are followed once, by whichever process runs it."""
    walk = walk_inputs(tmp_path)
    assert {str(INPUTS[number]): fault for number, fault in walk.faults.items()} == {}
    missing = [
        place
        for place, lines in error_places().items()
        if not any((file, line) in walk.places for file, line in lines)
    ]
    assert sorted(missing) == sorted(WITHOUT_INPUT)


def error_places() -> dict[str, list[tuple[str, int]]]:
    """Return the lines of each place in the code that makes an error, by the file, the function and its number there."""
    places = dict[str, list[tuple[str, int]]]()
    names = dict[tuple[str, int], str]()
    for path in [path for pattern in READING for path in sorted(ROOT.glob(pattern))]:
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            made = [call for call in calls if getattr(call.func, "id", "") in NAMES_OF_ERRORS]
            for number, call in enumerate(made):
                lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
                name = f"{path.relative_to(ROOT / 'stages')}:{function.name}:{number}"
                names[str(path), call.lineno] = name  # the inner function comes last
                places[name] = [(str(path), line) for line in lines]
    return {name: places[name] for name in names.values()}
