"""Check that files, variables and ports that a configuration names are checked at once when it is composed."""

import json
import os
import socket
import struct
from pathlib import Path

import pytest

from stages.cli import main
from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from stages.store.store import Store
from tests.helpers import TINY, Chain, as_typed, composed, refused

HEAD = struct.pack("<Q", 2) + b"{}"  # of a safetensors file without tensors
SCORING = {
    "model_type": "llama",
    "architectures": ["LlamaForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
}
LABELER = """
from stages.labelers.labeler import Labeler

class Mine(Labeler):
    name = "mine"

    def __init__(self, sign=1):
        pass

    def judge(self, prompt, candidates):
        pass
"""
SAMPLER = """
from stages.samplers import sampler as of

class Mine(of.Sampler):
    name = "mine"

    @classmethod
    def open(cls, source, stop_ids, decoding, *, top):
        pass
"""


def rows(*content: object) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in content)


FILES: dict[str, str | bytes] = {
    "chat.jsonl": rows(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ),
    "pairs.jsonl": rows({"prompt": "q", "chosen": "a", "rejected": "b"}),
    "labels.jsonl": rows({"text": "q", "label": "good"}),
    "plain.txt": "one\n\ntwo\n",
    "blank.jsonl": "\n\n",
    "paper.pdf": b"%PDF-1.4",
    "wide.jsonl": '{"text": "x"}\n'.encode("utf-16"),
    "notes/README.md": "nothing",
    "splits/train.jsonl": rows({"text": "x"}),
    "splits/test.jsonl": rows({"text": "y"}),
    "task.yaml": "columns: {text: text}\n",
    "words.jsonl": "hello\n",
    "blanks.jsonl": rows({"question": "x", "verdict": None}),
    "weights/model.safetensors": HEAD,
    "bare/config.json": json.dumps(SCORING),
    "mute/config.json": json.dumps(SCORING),
    "mute/model.safetensors": HEAD,
    "mute/tokenizer.json": "{}",
    "causal/config.json": json.dumps(
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    ),
    "causal/model.safetensors": HEAD,
    "causal/tokenizer.json": "{}",
    "odd/config.json": json.dumps({**SCORING, "architectures": 3}),
    "odd/model.safetensors": HEAD,
    "odd/tokenizer.json": "{}",
    "double/config.json": json.dumps({**SCORING, "id2label": {"0": "good", "1": "bad"}}),
    "double/model.safetensors": HEAD,
    "double/tokenizer.json": "{}",
    "torn/config.json": "{",
    "torn/model.safetensors": HEAD,
    "adapter/adapter_config.json": "{}",
    "labeler.py": LABELER,
    "sampler.py": SAMPLER,
    "lost.py": "import no_such_package\n\nclass Mine: pass\n",
    "plain.py": "class Mine: pass\n\ndef read(row, strict): pass\n",
}
SERVER = "base_url: 'http://127.0.0.1:9/v1', model: m"
JUDGE = ("label=judge", f"label.endpoints=[{{{SERVER}, api_key_env: NO_SUCH_KEY}}]")
NAMED = f"sample.endpoint={{{SERVER}}}"

# Wrong settings of one command line, and the texts that its one error line must have. DIR is a folder with FILES.
TOGETHER: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (
        (
            "data.sources=[{path: DIR/none*.jsonl}, {path: DIR/blank.jsonl}, {path: DIR/notes}, {path: DIR/splits},"
            "{path: DIR/paper.pdf}, {path: DIR/wide.jsonl}, {path: DIR/plain.txt}, {path: DIR/pipe},"
            "{path: DIR/loose}, {path: DIR/pairs.jsonl, columns: {prompt: nope}},"
            "{path: DIR/chat.jsonl, columns: {nope: messages}}]",
            "outside=[{path: DIR/gone.jsonl, check: label}]",
            "eval.retention=[{path: DIR/plain.txt}]",
            "data.audit.actions={contaminated: drop}",
            "data.audit.against=[{path: DIR/away.jsonl}]",
            "reward.source.path=DIR/chat.jsonl",
            *JUDGE,
        ),
        (
            "data.sources[0].path=DIR/none*.jsonl: there is no such file",
            "data.sources[1].path=DIR/blank.jsonl: has no rows",
            "data.sources[2].path=DIR/notes: has no rows",
            "data.sources[3].path=DIR/splits: holds the splits test, train",
            "data.sources[4].path: DIR/paper.pdf: is a PDF",
            "data.sources[6].documents=paragraphs",
            "data.sources[7].path=DIR/pipe: this is a pipe or a device",
            "data.sources[8].path=DIR/loose: there is no such file",
            "data.sources[9].columns={prompt: nope}",
            "data.sources[10].columns: 'nope' is not a role",
            "outside[0].path=DIR/gone.jsonl: there is no such file",
            "eval.retention[0].documents=paragraphs",
            "data.audit.against[0].path=DIR/away.jsonl: there is no such file",
            "reward.source.path: DIR/chat.jsonl: no known columns",
            "label.endpoints[0].api_key_env=NO_SUCH_KEY: this environment variable is missing",
        ),
    ),
    (
        (
            "data.sources=[{path: DIR/labels.jsonl, task: DIR/task.yaml}, "
            "{path: DIR/labels.jsonl, task: '~no_such_user/task.yaml'}]",
        ),
        ("data.sources[0].task=DIR/task.yaml", "data.sources[1].task=~no_such_user/task.yaml: "),
    ),
    (
        (
            "model=tiny",
            "label=own",
            "label.own={file: DIR/labeler.py, name: Other}",
            "sample.own={file: DIR/lost.py, name: Mine}",
            "data.own={file: DIR/plain.py, name: read}",
            "label.known=DIR/words.jsonl",
            "label.audit=9",
        ),
        (
            "label.own.name=Other: the file does not define this name",
            "sample.own: no module 'no_such_package'",
            "label.known=DIR/words.jsonl: line 1 is not a row of audit.jsonl",
        ),
    ),
    (
        ("data.own={file: DIR, name: f}", "label.audit=1", "label.known=DIR/pipe"),
        ("data.own.file=DIR: there is no such", "label.known=DIR/pipe: there is no such file"),
    ),
    (
        (
            "label=reward_model",
            "label.path=DIR/causal",
            "sample=openai",
            NAMED[:-1] + ", api_key_env: X_}",
            "sft.runtime.device=cuda",
            "answer.runtime.device=cuda",
            "label.runtime.device=cuda",
        ),
        (
            "label.path=DIR/causal: ['LlamaForCausalLM'] gives no scores",
            "sample.endpoint.api_key_env=X_",
            "sft.runtime.device=cuda: this machine shows no GPU",
            "answer.runtime.device=cuda",
            "label.runtime.device=cuda",
        ),
    ),
    (
        ("stage=reward", "label=human", "reward.margin=true", "label.reasons=[a, a]"),
        ("reward.margin=true: label=human gives no score", "label.reasons: "),
    ),
    (
        ("label=reward_model", "label.path=DIR/double"),
        ("its config.json has 2 outputs",),
    ),
    (
        ("label=reward_model", "label.path=DIR/odd"),
        ("label.path=DIR/odd: 3 gives no scores",),
    ),
    (
        ("label=reward_model", "label.path=DIR/mute"),
        ("DIR/mute: its tokenizer has no chat template",),
    ),
    (
        ("label=reward_model", "label.path=DIR/chat.jsonl"),
        ("a reward model is a folder",),
    ),
    (
        (
            "label=ensemble",
            "label.members=[{labeler: reward_model}, {labeler: judge}]",
            JUDGE[1].replace("label.", "label.judge."),
            "label.reward_model.path=DIR/none",
            "label.people=5",
            "label.human.runtime.host=192.0.2.1",
        ),
        (
            "label.reward_model.path=DIR/none: there is no such file or folder",
            "label.judge.endpoints[0].api_key_env=NO_SUCH_KEY",
            "label.human.runtime: cannot listen at 192.0.2.1",
        ),
    ),
    (
        ("label=human", "label.runtime.port=TAKEN", "label.answered=DIR/words.jsonl"),
        (
            "label.runtime: cannot listen at 127.0.0.1, port TAKEN",
            "answered=DIR/words.jsonl: line 1: not a row of",
        ),
    ),
    (
        (
            "label=human",
            "label.runtime.host=no.such.invalid",
            "label.answered=DIR/blanks.jsonl",
        ),
        (
            "label.runtime: cannot listen at no.such.invalid",
            "answered=DIR/blanks.jsonl: has no answers",
        ),
    ),
    (
        (
            "sample.pool=[{model: DIR/bare}, {model: DIR/torn}, {model: DIR/adapter}, {model: nope}, {model: policy},"
            "{model: base}, {model: DIR/plain.txt}, {model: DIR/weights}, {file: DIR/none.jsonl},"
            "{file: DIR/labels.jsonl}, {model: 'package:.x/y'}, {model: 'package:json/none'},"
            "{model: 'package:json/../json'}, {model: 'package:json//etc'}, {model: 'package:a b/c'},"
            "{model: 'package:no_such/x'}, {model: 'package:__main__/x'}, {model: '~nobody/x'}, {model: DIR/LONG},"
            "{model: user/name@v2}, {model: 'user/name:Q4_K_M'}, {model: 'https://host/x'}, {model: 'C:\\x'}]",
        ),
        (
            "sample.pool[0].model=DIR/bare: DIR/bare has no *.safetensors",
            "sample.pool[1].model=DIR/torn: DIR/torn/config.json cannot be read as JSON",
            "sample.pool[2].model=DIR/adapter: DIR/adapter/adapter_config.json: ",
            "sample.pool[3].model=nope: there is no such file or folder",
            "sample.pool[6].model=DIR/plain.txt: a single file must be a .gguf",
            "sample.pool[7].model=DIR/weights: the folder has no config.json",
            "sample.pool[8].file=DIR/none.jsonl: there is no such file",
            "sample.pool[9].columns={",
            "sample.pool[10].model=package:.x/y: '.x' is not the name of a package",
            "sample.pool[11].model=package:json/none: the package json does not have the file 'none'",
            "sample.pool[12].model=package:json/../json: the package json does not have",
            "sample.pool[13].model=package:json//etc: the package json does not have the file '/etc'",
            "sample.pool[14].model=package:a b/c: 'a b' is not the name of a package",
            "sample.pool[15].model=package:no_such/x: the package no-such is not installed",
            "sample.pool[16].model=package:__main__/x",
            "sample.pool[17].model=~nobody/x: there is no such file or folder",
            "File name too long",
            "sample.pool[19].model=user/name sample.pool[19].revision=v2",
            "download user/name, and type sample.pool[20].model=FOLDER/FILE.gguf",
            "sample.pool[21].model=https://host/x: there is no such file or folder. Addresses are not read",
            "'sample.pool[22].model=\"C:/x\"'",
        ),
    ),
    (
        ("launch=ddp", "launch.nodes=2", "launch.rendezvous=192.0.2.1:29400"),
        ("launch.rendezvous=192.0.2.1:29400: node 0 cannot listen there",),
    ),
    (
        (
            "dpo.trainer.extra.log_level=loud",
            "sft.trainer.extra.activation_checkpointing=true",
            "label=judge",
            "sft.adapter=lora",
            "sft.lora.target_modules=[nope.q_proj]",
            f"label.endpoints=[{{{SERVER}, extra: {{n: 4}}}}]",
            "data.sources=[{path: DIR/chat.jsonl}, {path: a, columns: {prompt: [1]}}]",
            "launch.nodes=2",
            "launch.rendezvous=host:99999",
            "label.known=x",
        ),
        (
            "dpo.trainer.extra.log_level: ",
            "Set sft.runtime.gradient_checkpointing instead",
            "sft.lora.target_modules=['nope.q_proj']: ",
            "label.endpoints[0].extra.n=4: ",
            "data.sources[1].columns={prompt: [1]}: a column must be a name",
            "launch.rendezvous=host:99999 is not HOST:PORT",
            "label.known needs judgements to compare with. Add label.audit",
        ),
    ),
    (
        (
            "dpo.lora.rank=0",
            "sample.top_p=nan",
            "eval.confidence=inf",
            "sft.epochs=-1",
            "label=human",
            "label.instructions=' '",
        ),
        (
            "dpo.lora.rank=0: the value must be from 1",
            "sample.top_p=nan: the value must be",
            "eval.confidence=inf: the value must be",
            "sft.epochs=-1.0: the value must be",
            "label.instructions= : the value is empty",
        ),
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loose").symlink_to("/nowhere")
    return tmp_path


@pytest.mark.extended
def test_what_cannot_work_is_told_all_at_once_when_it_is_composed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        main, "build", lambda *_: pytest.fail("something is built before the error")
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sum(len(pattern) for _, pattern in TOGETHER) > 70
    lines = [case for case in TOGETHER if "human" in EXTRAS or "human" not in " ".join(case[0])]
    with socket.create_server(("127.0.0.1", 0)) as server:
        for typed, pattern in lines:
            places = {"DIR": str(folder), "TAKEN": str(server.getsockname()[1]), "LONG": "x" * 300}

            def placed(text: str, places: dict[str, str] = places) -> str:
                for name, place in places.items():
                    text = text.replace(name, place)
                return text

            line = refused(*TINY, f"outputs={folder / 'store'}", "stage=plan", *map(placed, typed))
            for each in pattern:
                assert placed(each) in line, f"{each} is missing in: {line}"
    assert not [*(folder / "store").glob("*/*.partial")]


def test_what_the_store_holds_needs_nothing_any_more(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished node needs no key, port or device."""
    monkeypatch.setattr(main, "build", lambda *_: None)
    line = (
        *TINY,
        f"outputs={chain.root}",
        "stage=report",
        "sft.runtime.device=cuda",
        "answer.runtime.device=cuda",
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with as_typed(*line):
        main.run(composed(*line))
    assert "dpo.runtime.device=cuda" in refused(*line, "dpo.beta=0.7", "dpo.runtime.device=cuda")


def test_a_key_that_kept_answers_may_do_without_is_not_asked_for(tmp_path: Path) -> None:
    from stages.config.blocks.endpoints import Endpoint
    from stages.preflight.servers import require_askable
    from stages.store.call_cache import Calls

    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", "NO_SUCH_KEY")
    with pytest.raises(UserError, match="NO_SUCH_KEY"):
        require_askable("sample.endpoint", endpoint, Store(tmp_path))
    (tmp_path / "cache" / "calls").mkdir(parents=True)
    with Calls(tmp_path / "cache" / "calls", str(endpoint.base_url), "m").opened():
        require_askable("sample.endpoint", endpoint, Store(tmp_path))
