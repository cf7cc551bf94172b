"""Follow the pages of docs/extending to the letter: their files, commands and changes, outside the checkout."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stages.config.installation import ROOT
from stages.store.manifest import read_manifest
from stages.store.records import Candidate, Example, Judgement, load
from tests.helpers import TINY, Chain, command, inside

PAGES = ["labeler", "sampler", "format", "task", "command", "mirror", "stage", "objective", "loss"]
PAGE = "\n".join((ROOT / "docs" / "extending" / f"{name}.md").read_text() for name in PAGES)
FILES = dict(
    re.findall(r"^```(?:python|yaml) (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
)
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
CHANGES = re.findall(r"^```diff\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
TRIVIA = [{"q": f"What is {n} and {n}?", "a": str(2 * n), "category": "sums"} for n in range(150)]


def page_arguments(stage: str, part: str) -> list[str]:
    """Return the arguments of the page's command for a part."""
    (line,) = [line for line in COMMANDS if f"stage={stage} " in line and part in line]
    return shlex.split(line)[2:]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A folder outside the checkout with the page's files."""
    folder = tmp_path / "mine"
    for name, text in FILES.items():
        if "/" not in name:
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    (folder / "trivia.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TRIVIA))
    return folder


def run(scratch: Path, root: Path, *arguments: str, by: Any = command) -> None:
    """In a process of its own; by `inside`, in this one, which has torch loaded."""
    ran = by(*TINY, f"outputs={root}", *arguments, cwd=scratch)
    assert ran.returncode == 0, ran.stderr


def latest(root: Path, stage: str) -> Path:
    return (root / "latest" / stage).resolve()


def test_a_labeler_of_ones_own(chain: Chain, scratch: Path) -> None:
    assert len(FILES["brief.py"].splitlines()) <= 20
    run(scratch, chain.root, *page_arguments("pairs", "label.own"))
    node = latest(chain.root, "label")
    texts = {c.candidate_id: c.text for c in load(node / "candidates.parquet", Candidate)}
    for judgement in load(node / "judgements.parquet", Judgement):
        assert judgement.labeler == "brief"
        assert judgement.score == max(0.0, 1 - len(texts[str(judgement.candidate_id)]) / 200)
    assert (node / "own.py").read_text() == FILES["brief.py"]
    assert "own.py" in read_manifest(node)["files"]


def test_a_reward_function_of_ones_own(chain: Chain, scratch: Path) -> None:
    line = page_arguments("grpo", "concise.py")
    run(
        scratch,
        chain.root,
        *(w.replace("stage=grpo", "stage=label") for w in line if "align" not in w),
        by=inside,
    )
    node = latest(chain.root, "label")
    prompts = {e.id: e for e in load(node / "prompts.parquet", Example)}
    candidates = {c.candidate_id: c for c in load(node / "candidates.parquet", Candidate)}
    for judgement in load(node / "judgements.parquet", Judgement):
        candidate = candidates[str(judgement.candidate_id)]
        is_right = str(prompts[candidate.prompt_id].reference) in candidate.text
        assert float(str(judgement.raw)) == is_right - len(candidate.text) / 1000


def test_a_loss_of_ones_own(chain: Chain, scratch: Path) -> None:
    run(scratch, chain.root, *page_arguments("dpo", "dpop.py"), by=inside)
    node = latest(chain.root, "dpo")
    assert (node / "own.py").read_text() == FILES["dpop.py"]
    assert read_manifest(node)["config"]["own"]["options"] == {"penalty": 5.0}
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (chain.folder("sft"), node)
    )
    assert any((before[name] != weight).any() for name, weight in after.items())


@pytest.mark.extended
def test_advantages_of_ones_own(chain: Chain, scratch: Path) -> None:
    run(scratch, chain.root, *page_arguments("grpo", "shorter.py"), by=inside)
    node = latest(chain.root, "grpo")
    assert (node / "advantages" / "own.py").read_text() == FILES["shorter.py"]
    assert "advantages/own.py" in read_manifest(node)["files"]


def test_a_sampler_of_ones_own(chain: Chain, scratch: Path) -> None:
    run(scratch, chain.root, *page_arguments("sample", "sample.own"), by=inside)
    node = latest(chain.root, "sample")
    request_by_id = {
        e.id: e.messages[-1]["content"].upper() for e in load(node / "prompts.parquet", Example)
    }
    for candidate in load(node / "candidates.parquet", Candidate):
        assert request_by_id[candidate.prompt_id].split()[-1] in candidate.text
        assert (candidate.sampler, candidate.token_ids, candidate.logprob) == (
            "last_words",
            None,
            None,
        )
        assert candidate.n_tokens > 0


def test_a_format_of_ones_own(chain: Chain, scratch: Path) -> None:
    run(scratch, chain.root, *page_arguments("data", "trivia.py"), by=inside)
    node = latest(chain.root, "data")
    own_examples = [
        e for e in load(node / "examples.parquet", Example) if e.source == "trivia.jsonl"
    ]
    assert {(e.messages[0]["content"], e.reference) for e in own_examples} == {
        (f"{row['q']} (sums)", row["a"]) for row in TRIVIA
    }


def test_a_task_family_of_ones_own_joins_the_others(chain: Chain, scratch: Path) -> None:
    run(
        scratch,
        chain.root,
        *page_arguments("data", "backwards.py"),
        "data.tasks.families=[sentiment,odd_one_out,backwards]",
        by=inside,
    )
    tasks = {e.task for e in load(latest(chain.root, "data") / "examples.parquet", Example)}
    assert tasks == {"sentiment", "odd_one_out", "backwards"}


def changed(house: Path, changes: str) -> list[str]:
    """Apply changes of the page, and return the names of the files: what a hunk shows unmarked or with a minus stands
    in the file once, and is replaced by the rest."""
    names = []
    for part in re.split(r"^--- .*\n\+\+\+ b/", changes, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        names.append(name)
        text = (house / name).read_text()
        for hunk in body.split("@@\n")[1:]:
            lines = hunk.splitlines()
            before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
            assert text.count(f"{before}\n") == 1, before
            text = text.replace(
                before, "\n".join(line[1:] for line in lines if not line.startswith("-"))
            )
        (house / name).write_text(text)
    return names


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the checkout."""
    folder = tmp_path / "house"
    for name in ("stages", "conf", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", folder)
    return folder


def in_house(house: Path, *arguments: str) -> str:
    """Run a command of the copy, and return its output."""
    line = [sys.executable, "run.py", *TINY, *arguments]
    environment = os.environ | {"PYTHONPATH": str(house)}
    ran = subprocess.run(
        line, cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def write_extra(house: Path, extra: str) -> None:
    """Write the files of an extra of the pages."""
    for name, text in FILES.items():
        if name.startswith(f"stages/extras/{extra}/"):
            (house / name).parent.mkdir(exist_ok=True)
            (house / name).write_text(text)


def count_manifests(root: Path) -> Counter[str]:
    """Count the nodes of each stage in a folder."""
    return Counter(file.parent.parent.name for file in root.glob("*/*/manifest.json"))


@pytest.mark.extended
@pytest.mark.extra("sync", "gc")
def test_a_mirror_in_the_house(house: Path, chain: Chain, tmp_path: Path) -> None:
    """It is one folder, and shares the store where the project's own shared store was removed."""
    shutil.rmtree(house / "stages" / "extras" / "shared_store", ignore_errors=True)
    write_extra(house, "nas")
    [line] = [line for line in COMMANDS if "nas.remote" in line]
    key = shlex.split(line)[2].partition("=")[0]
    remote = f"{key}={tmp_path / 'remote'}"
    in_house(house, "stage=sync", f"outputs={chain.root}", remote)
    second = f"outputs={tmp_path / 'b'}"
    ran = in_house(house, "stage=pairs", "pairs=margin", second, remote)
    assert ran.count(": built ") == 1, "all but the pairs is pulled"
    [pulled] = (tmp_path / "b" / "label").iterdir()
    assert read_manifest(pulled) == chain.manifest("label")
    sent = chain.count() | {"pairs": 2}
    assert count_manifests(tmp_path / "remote") == sent
    in_house(house, "stage=gc", "gc.remove=true", second, remote)
    assert count_manifests(tmp_path / "remote") == sent


@pytest.mark.extended
def test_a_command_in_the_house(house: Path, built: Path) -> None:
    """It is one folder: no other file is changed."""
    write_extra(house, "sizes")
    [line] = [line for line in COMMANDS if "stage=sizes" in line]
    listed = in_house(house, f"outputs={built}", *shlex.split(line)[2:])
    sizes = [float(line.split(" MiB ")[0]) for line in listed.splitlines() if " MiB " in line]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True)
    reply = json.loads(in_house(house, f"outputs={built}", "stage=sizes", "--json"))
    assert len(reply["result"]["bytes_by_folder"]) == 10
    assert "sizes      the largest nodes of a store" in in_house(house, "--help")
    assert re.search(r"^sizes\.most +10 ", in_house(house, "--help=sizes"), re.MULTILINE)


@pytest.mark.extended
def test_a_stage_in_the_house(house: Path, chain: Chain) -> None:
    """It is one folder: no other file is changed."""
    write_extra(house, "lengths")
    [line] = [line for line in COMMANDS if "stage=lengths" in line]
    outputs = f"outputs={chain.root}"
    in_house(house, outputs, *shlex.split(line)[2:], "lengths.width=4")
    (node,) = (chain.root / "lengths").iterdir()
    counts = json.loads((node / "lengths.json").read_text())
    assert sum(counts.values()) == chain.manifest("sample")["metrics"]["candidates"]
    assert {int(length) % 4 for length in counts} == {0}
    assert re.search(r"^lengths\.width +8 ", in_house(house, "--help=lengths"), re.MULTILINE)
    assert read_manifest(node)["settings"]["width"] == 4


@pytest.mark.slow
def test_an_objective_that_draws_in_the_house(house: Path, chain: Chain) -> None:
    """The page promises five files. Its control is best draws with the same keys."""
    new = [name for name in FILES if "plain_reward" in name]
    for name in new:
        (house / name).write_text(FILES[name])
    assert len(new) + len(changed(house, CHANGES[1])) == 5
    sizes = ("max_new_tokens=8", "completions=4", "batch_size=8", "temperature=1.5")
    keys = [f"plain_reward.{size}" for size in sizes]
    line = (f"outputs={chain.root}", "stage=report", "align=plain_reward", "control=true", *keys)
    in_house(house, *line)
    (node,) = (chain.root / "plain_reward").iterdir()
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (chain.folder("sft"), node)
    )
    assert any((before[name] != weight).any() for name, weight in after.items())
    (control,) = (chain.root / "grpo").iterdir()
    metrics = [read_manifest(folder)["metrics"] for folder in (node, control)]
    for name in ("steps", "prompts", "first_prompts"):
        assert metrics[0][name] == metrics[1][name]
    assert "Plain reward over best draws" in (chain.root / "report.html").read_text()


@pytest.mark.slow
def test_an_objective_in_the_house(house: Path, chain: Chain) -> None:
    """The page promises five files."""
    new = [name for name in FILES if "cpo" in name]
    for name in new:
        (house / name).write_text(FILES[name])
    assert len(new) + len(changed(house, CHANGES[0])) == 5
    in_house(
        house,
        f"outputs={chain.root}",
        *shlex.split(next(c for c in COMMANDS if "stage=cpo" in c))[2:],
    )
    (node,) = (chain.root / "cpo").iterdir()
    before, after = (
        load_file(folder / "model" / "model.safetensors") for folder in (chain.folder("sft"), node)
    )
    assert all((before[name] != weight).any() for name, weight in after.items())
    metrics = read_manifest(node)["metrics"]
    assert metrics["steps"] == metrics["pairs"] // 4
    assert "contrastive preference optimization" in (node / "model" / "README.md").read_text()
