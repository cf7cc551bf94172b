"""Files of preferences in the shapes that people have: each is rehearsed on random weights in one command, or in two if
the first is refused with what to type. Terminal, page, card and JSON say the same of it, and give no verdict."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.commands.documents import evaluation_section
from stages.evaluation.results import read_results
from tests.helpers import Chain, build, refused
from tests.pages.test_all_answers import content_of

ROWS = 120
LANGUAGES = ("de", "en", "fr")
NOUNS = ("lamp", "chair", "kettle", "ladder", "bucket", "spoon", "garden", "river")


@dataclass
class File:
    """A file's name, its rows, and if the first command is refused, the words of the refusal and what the second
    types."""

    name: str
    rows: list[dict[str, Any]]
    refusal: str = ""
    more: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        return path


def preferences(row: Callable[[str, str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of a prompt, its better and its worse answer."""
    rows = []
    for i in range(ROWS):
        prompt = f"Describe the {NOUNS[i % len(NOUNS)]} number {i}."
        values = row(prompt, "It is useful and clean.", "No idea, ask somebody else.")
        rows.append({**values, "language": LANGUAGES[i % len(LANGUAGES)]})
    return rows


def by_choice(prompt: str, better: str, worse: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def in_words(prompt: str, better: str, worse: str) -> dict[str, str]:
    return {"Frage": prompt, "Gute Antwort": better, "Schlechte Antwort": worse}


def by_thumb(prompt: str, better: str, worse: str) -> dict[str, str]:
    """One answer to each prompt, with a thumb."""
    is_good = len(prompt) % 2 == 0
    completion = better if is_good else worse
    return {"prompt": prompt, "completion": completion, "thumbs": "up" if is_good else "down"}


COLUMNS = "{prompt: Frage, chosen: Gute Antwort, rejected: Schlechte Antwort}"
FILES = [
    File("pairs.jsonl", preferences(by_choice)),
    File(
        "words.jsonl",
        preferences(in_words),
        refusal="""label.columns={prompt: Frage, chosen: "Gute Antwort", rejected: "Schlechte Antwort"}""",
        more=(f"label.columns={COLUMNS}",),
    ),
    File("thumbs.jsonl", preferences(by_thumb), refusal="align=kto", more=("align=kto",)),
]


@pytest.mark.extended
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_file_of_preferences_is_rehearsed_and_nothing_is_said_of_what_was_learnt(
    file: File, tmp_path: Path
) -> None:
    path = file.write(tmp_path)
    chain = Chain(tmp_path / "outputs")
    typed = ("recipe=from_preferences", "scale=toy", "tracker=none", f"data.path={path}")
    if file.refusal:
        assert file.refusal in refused(*typed, f"outputs={chain.root}")
    typed += file.more
    build(chain.root, *typed)
    results = read_results(chain.folder("eval", *typed))
    verdict = results.verdict
    assert "your file passes all stages" in verdict
    assert not re.search(r"learnt|better|worse", verdict)
    assert chain.manifest("eval", *typed)["metrics"]["summary"] == verdict
    page = (chain.root / "report.html").read_text()
    assert re.findall(r"<h1>(.*?)</h1>", page, re.DOTALL) == [verdict]
    states = {*re.findall(r'<li class="(\w+)"><i aria-hidden', page)}
    assert states <= {"none", "off"}, "no lamp is lit"
    assert verdict in evaluation_section(results, 0.95)
    shown = content_of((chain.root / "answers.html").read_text())["prompts"]
    assert results.learnt and len(shown) == results.learnt.prompts, "every held-out prompt"
    assert {each["columns"]["language"] for each in shown} <= {*LANGUAGES}
    assert all(each["reference"] for each in shown) or file.more == ("align=kto",)
    assert all(len(each["answers"]) == len(results.models) for each in shown)
