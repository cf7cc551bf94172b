"""Every sentence about a run is true: in its report, on its model cards, in summaries and warnings of its nodes."""

import json
import re
import shutil
from pathlib import Path

import pytest

from stages.store.store import Store
from tests.helpers import Chain, build, nodes

SPLITS = (
    "sft",
    "preference",
    "validation",
    "test",
    "unseen_phrasings",
    "unseen_tasks",
    "rephrased",
)
NO_TASKS = tuple(f"data.tasks.{group}=0" for group in SPLITS)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each on one line."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [part for line in lines for part in re.split(r"(?<=[.!?;:]) +", line) if part]


def statements_of(root: Path, *line: str) -> list[tuple[str, str]]:
    """Return every sentence of a built run, with its place."""
    store = Store(root)
    texts = dict[str, str]()
    for name, node in nodes(root, *line).items():
        manifest = store.find(node)
        if not manifest:
            continue
        texts[f"{name}: summary"] = manifest["metrics"]["summary"]
        texts[f"{name}: warnings"] = "\n".join(manifest["warnings"])
        card = store.folder(node) / "model" / "README.md"
        if card.exists():
            texts[f"{name}: card"] = card.read_text(encoding="utf-8")
    page = (root / "report.html").read_text(encoding="utf-8")
    texts["report"] = re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return [(place, sentence) for place, text in texts.items() for sentence in sentences(text)]


# A verdict by preferences alone does not claim better answers, and answers from a file were not sampled or checked.
UNTRUE = (
    r"\b(DPO|policy|it) (helped|hurt)\b",
    r"made no measurable change",
    r"\bseen tasks\b",
    r"sample\.\w+",
    r"\bSFT (was|is) trained\b",
    r"trained on \d",
    # sentences about the demo give no figures of the run
    r"^(?!.*docs/explanation/results\.md).*\b[1-9][\d,]* (sft|demonstrations|preference)\b",
    r"\bdata\.tasks\b",
    r"generated (instructions|tasks)",
    r"test prompts?\b",
    r"\bpass(es|ed)? \d",
)
TRUE = (
    ("dpo: card", r"preference pairs of mine\.jsonl"),
    ("eval: summary", r"held-out pairs"),
    ("sft: card", "not trained here"),
)


def preferences(file: Path) -> Path:
    rows = [
        {"prompt": f"Say {i}", "chosen": f"alpha {i}", "rejected": f"gamma {i}"} for i in range(60)
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def as_it_is(chain: Chain, folder: Path) -> tuple[str, ...]:
    """Copy the chain's SFT model as a checkpoint of the user, and return the settings that name it."""
    shutil.copytree(chain.folder("sft") / "model", folder)
    for name in ("contract.json", "README.md"):
        (folder / name).unlink()
    return ("model.random_init=null", f"model.path={folder}")


@pytest.mark.extended
def test_no_sentence_is_untrue_of_a_run_on_a_file_and_a_model_as_it_is(
    chain: Chain, tmp_path: Path
) -> None:
    line = (
        "label=dataset",
        f"label.path={preferences(tmp_path / 'mine.jsonl')}",
        "pairs=all",
        "sft=none",
        *NO_TASKS,
        *as_it_is(chain, tmp_path / "model"),
    )
    build(chain.root, "stage=report", *line)
    statements = statements_of(chain.root, *line)
    assert len(statements) > 20
    for pattern in UNTRUE:
        assert not [(place, text) for place, text in statements if re.search(pattern, text)]
    for where, pattern in TRUE:
        assert any(place == where and re.search(pattern, text) for place, text in statements)
