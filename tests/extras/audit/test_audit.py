"""Tests of `stage=audit`: every row is counted, codes are reported with their places, and the page shows them."""

import json
from pathlib import Path

import pytest

from stages.config.errors import UNSEEN
from stages.extras.audit.command import AuditResult
from tests.browser import page_faults
from tests.cli.test_json import result, typed_arguments
from tests.helpers import Chain, refused
from tests.helpers import inside as run

FILE = ("data=file", "tracker=none", "stage=audit", "model=tiny")  # whose rows are not shown
ROWS = [
    {
        "instruction": "Name a tree that grows beside the sea.",
        "input": "",
        "output": "Tamarisks do, and so do pines.",
    },
    {
        "instruction": "Name a tree that grows beside the sea.",
        "input": "",
        "output": "Tamarisks do, and so do pines.",
    },
    {
        "instruction": "Name a tree.",
        "input": "<noinput>",
        "output": "<script>alert(1)</script>\x1b\u202e [Your Name]",
    },
    {"instruction": "Name a fish that lives in rivers and lakes.", "input": "", "output": ""},
    {"instruction": "What is 2 + 2?", "input": "", "output": "2 + 2 = 5"},
    {
        "instruction": "Why is the sea salty?",
        "input": "",
        "output": "Rivers bring salt, and only water leaves it.",
    },
]
PAIRS = [
    {
        "prompt": "Name a fish.",
        "chosen": "A pike.",
        "rejected": "An oak, which is no fish at all. " * 9,
    }
]


def written(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_every_finding_is_told_with_its_place(built: Path, tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", ROWS)
    store = tmp_path / "outputs"
    pairs = written(tmp_path / "pairs.jsonl", PAIRS)
    test_set = written(tmp_path / "asked.jsonl", [{"prompt": "name a fish"}])
    typed = (
        *FILE,
        f"outputs={store}",
        f"data.sources=[{{path: {rows}}}]",
        "label=dataset",
        f"label.path={pairs}",
    )
    typed += (f"data.audit.against=[{{path: {test_set}}}]",)
    shown = [word for word in typed if word != "model=tiny"]
    ran = run(*shown, f"model.path={Chain(built).folder('base') / 'model'}")
    assert ran.returncode == 0, ran.stderr
    assert "5 of 7 rows" in ran.stdout
    assert "end of turn '<|im_end|>'" in ran.stdout, "rows are shown as they are trained"
    lines = [json.loads(line) for line in (store / "audit.jsonl").read_text().splitlines()]
    codes = {row["place"]: {*row["codes"]} for row in lines}
    assert codes == {
        f"{rows}:2": {"duplicate"},
        f"{rows}:3": {"damaged", "input_marker", "placeholder"},
        f"{rows}:4": {"unusable"},
        f"{rows}:5": {"wrong_sum"},
        f"{pairs}:1": {"lopsided", "contaminated"},
    }
    page = store / "audit.html"
    assert "<script>alert" not in page.read_text() and "&lt;script&gt;" in page.read_text()
    assert r"\x1b\u202e [Your" in page.read_text() and not UNSEEN.search(
        page.read_text().replace("\n", "")
    )
    assert "2 + 2 = 5" in page.read_text()


@pytest.mark.extended
def test_the_page_fits_and_is_accessible(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.jsonl", ROWS)
    store = tmp_path / "outputs"
    ran = run(*FILE, f"outputs={store}", f"data.sources=[{{path: {rows}}}]")
    assert ran.returncode == 0, ran.stderr
    assert page_faults(store / "audit.html", tmp_path / "browser") == []


@pytest.mark.extended
def test_what_is_mended_is_audited_as_it_will_be(tmp_path: Path) -> None:
    rows = [{"instruction": "Name a cafÃ©.", "output": "Oaks are no cafés at all."}]
    typed = (
        *FILE,
        f"outputs={tmp_path}",
        f"data.sources=[{{path: {written(tmp_path / 'rows.jsonl', rows)}}}]",
    )
    assert "1 of 1 rows have a code" in run(*typed).stdout
    ran = run(*typed, "data.audit.actions={damaged: fix}")
    assert "None of 1 rows" in ran.stdout
    assert "1 mended (damaged)" in ran.stdout + ran.stderr


@pytest.mark.extended
def test_what_cannot_be_audited_is_refused(tmp_path: Path) -> None:
    assert "stage=audit needs rows" in refused("stage=audit", f"outputs={tmp_path}")
    rows = written(tmp_path / "rows.jsonl", ROWS)
    broken = written(tmp_path / "broken.jsonl", [{"prompt": "Name a fish."}, {"prompt": ""}])
    typed = (*FILE, f"data.sources=[{{path: {rows}}}]", f"outputs={tmp_path}")
    against = f"data.audit.against=[{{path: {broken}}}]"
    for wrong, message in (
        (("data.audit.actions={eco: drop}",), "Did you mean 'echo'"),
        (("data.audit.actions={echo: drp}",), "Did you mean 'drop'"),
        (("data.audit.actions={contaminated: drop}",), "data.audit.against"),
        (("data.audit.actions={contaminated: drop}", against), "broken.jsonl: line 2"),
    ):
        assert message in refused(*typed, *wrong)


def test_an_audit_counts_the_rows_that_can_be_used_and_those_that_repeat(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a fish that lives in rivers.", "chosen": "A pike.", "rejected": "An oak."},
        {"prompt": "Name a fish that lives in rivers.", "chosen": "A pike.", "rejected": "An oak."},
        {"prompt": "Name a tree by the sea.", "chosen": "A tamarisk.", "rejected": "A pike."},
        {"prompt": "Name a bird."},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ("stage=audit", "label=dataset", f"label.path={file}", f"outputs={tmp_path / 'outputs'}")
    audit = result(AuditResult, *line)
    assert (audit["rows"], audit["usable"], audit["repeats"]) == (4, 3, 1)
    assert {code["code"]: code["rows"] for code in audit["codes"]}["duplicate"] == 1
    assert [source["path"] for source in audit["sources"]] == [str(file)]
    assert Path(audit["page"]).exists() and Path(audit["rows_file"]).exists()
    assert "stage=plan" in typed_arguments(audit["next_command"])
