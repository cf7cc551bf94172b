"""Every sentence about a run is true: in its report, on its model cards, in summaries and warnings of its nodes."""

import json
import re
import shutil
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.store.store import Store
from tests.helpers import Chain, build, nodes, slow_but

TARGET = "report"
SPLITS = (
    "sft",
    "preference",
    "validation",
    "test",
    "unseen_phrasings",
    "unseen_tasks",
    "rephrased",
)
NO_TESTS = tuple(f"data.tasks.{group}=0" for group in SPLITS[3:])
NO_TASKS = tuple(f"data.tasks.{group}=0" for group in SPLITS)
PAGES = ("report.html",)


class Text(HTMLParser):
    """Read the text of a page without scripts and styles, one line per block."""

    INLINE = ("a", "abbr", "b", "code", "em", "i", "small", "span", "strong", "sub", "sup")

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.silent = list[str](), 0

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.silent += tag in ("script", "style")
        self.parts += [] if tag in self.INLINE else ["\n"]

    def handle_endtag(self, tag: str) -> None:
        self.silent -= tag in ("script", "style")
        self.parts += [] if tag in self.INLINE else ["\n"]

    def handle_data(self, data: str) -> None:
        self.parts += [] if self.silent else [data]


def page_text(html: str) -> str:
    reader = Text()
    reader.feed(html)
    return "".join(reader.parts)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, each on one line."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [part for line in lines for part in re.split(r"(?<=[.!?;:]) +", line) if part]


def statements_of(root: Path, *line: str) -> list[tuple[str, str]]:
    """Return every sentence of a built run, with its place."""
    store, texts = Store(root), dict[str, str]()
    for name, node in nodes(root, *line).items():
        if (manifest := store.find(node)) is None:
            continue
        folder = store.folder(node)
        texts[f"{name}: summary"] = manifest["metrics"]["summary"]
        texts[f"{name}: warnings"] = "\n".join(manifest["warnings"])
        if (card := folder / "model" / "README.md").exists():
            texts[f"{name}: card"] = card.read_text(encoding="utf-8")
        for page in PAGES:
            if (folder / page).exists():
                texts[page] = page_text((folder / page).read_text(encoding="utf-8"))
    return [(place, sentence) for place, text in texts.items() for sentence in sentences(text)]


@dataclass(frozen=True)
class Run:
    """A run by its command line, patterns that no sentence may have, and (place, pattern) that some sentence has."""

    line: tuple[str, ...]
    forbidden: tuple[str, ...]
    required: tuple[tuple[str, str], ...]


# A verdict by preferences alone does not claim better answers, and answers from a file were not sampled or checked.
OF_PAIRS = (
    r"\b(DPO|policy|it) (helped|hurt)\b",
    r"made no measurable change",
    r"\bseen tasks\b",
    r"sample\.\w+",
)
DEMO = r"^(?!.*docs/explanation/results\.md)"  # sentences about the demo give no figures of the run
UNTRAINED = (
    r"\bSFT (was|is) trained\b",
    r"trained on \d",
    rf"{DEMO}.*\b[1-9][\d,]* (sft|demonstrations|preference)\b",
)
WITHOUT_TASKS = (
    r"\bdata\.tasks\b",
    r"generated (instructions|tasks)",
    r"test prompts?\b",
    r"\bpass(es|ed)? \d",
)
NAMED = (("dpo: card", r"preference pairs of mine\.jsonl"), ("eval: summary", r"held-out pairs"))
RUNS = {
    "a file, and a model as it is": Run(
        ("sft=none", *NO_TASKS),
        (*OF_PAIRS, *UNTRAINED, *WITHOUT_TASKS),
        (*NAMED, ("sft: card", "not trained here")),
    ),
    "a file, and the data's SFT": Run(
        NO_TESTS, (*OF_PAIRS, r"test prompts?\b"), (*NAMED, ("sft: card", "256"))
    ),
}


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
@pytest.mark.parametrize("name", slow_but(RUNS, "a file, and a model as it is"))
def test_no_sentence_is_untrue_of_its_run(name: str, chain: Chain, tmp_path: Path) -> None:
    run = RUNS[name]
    line = (
        "label=dataset",
        f"label.path={preferences(tmp_path / 'mine.jsonl')}",
        "pairs=all",
        *run.line,
    )
    line += as_it_is(chain, tmp_path / "model") if "sft=none" in run.line else ()
    build(chain.root, f"stage={TARGET}", *line)
    statements = statements_of(chain.root, *line)
    assert len(statements) > 20
    untrue = [
        (place, s) for place, s in statements for pattern in run.forbidden if re.search(pattern, s)
    ]
    assert not untrue
    for where, pattern in run.required:
        assert any(place == where and re.search(pattern, s) for place, s in statements), (
            where,
            pattern,
        )
