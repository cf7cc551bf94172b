"""`stage=gate`: policies whose answers are the reference answers of generated prompts, with known faults."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages.cli.explain import explained
from stages.config.errors import UserError
from stages.config.exit_codes import GateCode
from stages.evaluation.claims import REHEARSAL, REHEARSED, Word
from stages.evaluation.measures import (
    FILE,
    Measure,
)
from stages.evaluation.pair_groups import (
    LENGTH_COLUMNS,
    PairMargin,
    groups_of_column,
    mark_reversed,
)
from stages.evaluation.results import PairGroups
from stages.extras.gate import command as gate
from stages.hardware import process
from stages.store.records import save
from stages.store.store import Store
from tests.cli.test_json import reply, result
from tests.evaluation.made_policies import broken, measured
from tests.evaluation.made_results import learnt
from tests.helpers import TINY, Chain, as_published, inside, settings


def published(built: Path, root: Path, rows: list[Measure], **results: object) -> Path:
    """Publish these measures as the latest evaluation of a store."""
    original = Chain(built).folder("eval")
    folder = root / "eval" / original.name
    shutil.copytree(original, folder)
    save(folder / FILE, rows, Measure)
    content = json.loads((folder / "results.json").read_text()) | results
    (folder / "results.json").write_text(json.dumps(content))
    as_published(folder, FILE)
    as_published(folder, "results.json")
    (root / "latest").mkdir()
    (root / "latest" / "eval").symlink_to(Path("..") / "eval" / folder.name)
    return folder


def test_the_command_ends_with_the_code_and_writes_the_reasons(built: Path, tmp_path: Path) -> None:
    old = published(built, tmp_path / "old", measured(100))
    published(built, tmp_path / "same", measured(1))
    published(built, tmp_path / "worse", measured(1, broken))
    published(built, tmp_path / "other", measured(1), decoding={"max_new_tokens": 64})
    for name, expected in (("same", 0), ("worse", 1), ("other", 2)):
        ran = inside("stage=gate", f"outputs={tmp_path / name}", f"gate.against={old}")
        assert ran.returncode == expected, ran.stdout + ran.stderr
        content = json.loads((tmp_path / name / "gate.json").read_text())
        assert content["code"] == expected
        assert bool(content["reasons"]) == bool(expected)
        assert all(line["measure"].split()[0] in ran.stdout for line in content["lines"])
    (old / FILE).write_bytes(b"another content")
    damaged = inside("stage=gate", f"outputs={tmp_path / 'same'}", f"gate.against={old}")
    assert (damaged.returncode, FILE in damaged.stderr) == (2, True)
    assert not [*(tmp_path / "same").glob("gate.*")], (
        "an earlier comparison is not taken for this one"
    )


def test_evaluations_of_two_versions_are_not_compared(built: Path, tmp_path: Path) -> None:
    old = published(built, tmp_path / "old", measured(100))
    new = published(built, tmp_path / "new", measured(1))
    manifest = json.loads((new / "manifest.json").read_text())
    (new / "manifest.json").write_text(json.dumps(manifest | {"version": manifest["version"] + 1}))
    ran = inside("stage=gate", f"outputs={tmp_path / 'new'}", f"gate.against={old}")
    assert (
        ran.returncode == 2 and "rebuild=eval" in ran.stdout and str(tmp_path / "old") in ran.stdout
    )


def of_sft(rows: list[Measure]) -> list[Measure]:
    return [replace(row, role="sft") for row in rows]


def test_a_policy_is_compared_with_another_model_of_its_own_run(
    built: Path, tmp_path: Path
) -> None:
    published(built, tmp_path / "same", [*measured(1), *of_sft(measured(100))])
    published(built, tmp_path / "worse", [*measured(1, broken), *of_sft(measured(100))])
    few = {row.unit for row in measured(1)[:60]}
    rows = [*measured(1), *of_sft(measured(100))]
    published(built, tmp_path / "few", [row for row in rows if row.unit in few])
    published(built, tmp_path / "none", measured(1))
    for name, expected, state in (
        ("same", GateCode.passes, "good"),
        ("worse", GateCode.worse, "bad"),
        ("few", GateCode.cannot_tell, "none"),
        ("none", GateCode.other_prompts, "none"),
    ):
        store = Store(tmp_path / name)
        cfg = settings(*TINY, "gate.against=sft")
        result = gate.run(cfg, store, {}, [])
        assert (result.code, result.claim.state) == (expected, state), result.reasons
        assert result.before == result.after
        assert bool(result.needed) == (expected is GateCode.cannot_tell)
        assert json.loads((store.root / "gate.json").read_text())["claim"]["word"] == (
            result.claim.word
        )


def test_the_last_line_of_a_gate_says_its_claim_with_the_number_that_would_decide(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*measured(1), *of_sft(measured(100))]
    few = {row.unit for row in measured(1)[:60]}
    root = tmp_path / "few"
    published(built, root, [row for row in rows if row.unit in few])
    result = gate.run(settings(*TINY, "gate.against=sft"), Store(root), {}, [])
    capsys.readouterr()
    result.show()
    last = capsys.readouterr().out.splitlines()[-1]
    assert result.claim.says("gate") in last
    assert result.needed is not None
    assert f"{result.needed:,}" in last
    assert {line.measure for line in result.lines} == result.claims.keys()
    assert result.needed == max(line.needed or 0 for line in result.lines)


def test_the_first_screen_says_of_shipping_what_the_gate_says(chain: Chain) -> None:
    result = gate.run(settings(*TINY, "gate.against=sft"), Store(chain.root), {}, [])
    html = (chain.root / "report.html").read_text()
    [lamp] = re.findall(r"<span>Ship\?</span> <b>(.*?)</b> <small>(.*?)</small>", html)
    assert lamp == (result.claim.says("ship", before="SFT"), result.claim.figure)
    assert result.needed is not None
    assert f"{result.needed:,}" in lamp[1]


def test_a_rehearsal_cannot_tell_whatever_its_measures_are(built: Path, tmp_path: Path) -> None:
    published(built, tmp_path, [*measured(1, broken), *of_sft(measured(100))], rehearsal=REHEARSED)
    result = gate.run(settings(*TINY, "gate.against=sft"), Store(tmp_path), {}, [])
    assert (result.code, result.claim.state) == (GateCode.cannot_tell, "none")
    assert result.outcome == result.claim.note == REHEARSAL
    assert result.sentence.count(REHEARSAL) == 1
    written = json.loads((tmp_path / "gate.json").read_text())
    assert written["lines"] and written["claims"]
    assert {line["code"] for line in written["lines"]} == {GateCode.cannot_tell}
    assert {claim["word"] for claim in written["claims"].values()} == {Word.unknown}
    assert {claim["figure"] for claim in written["claims"].values()} == {""}
    says = re.compile(r"worse|better|needs|fell|rose|task ")
    assert not says.search(json.dumps(written)), "no line is there because of what a test came to"


def test_nothing_is_said_beside_an_earlier_rehearsal(built: Path, tmp_path: Path) -> None:
    old = published(built, tmp_path / "old", measured(100), rehearsal=REHEARSED)
    published(built, tmp_path / "new", measured(1, broken))
    published(built, tmp_path / "more", [*measured(1), Measure("another", "unit", "task", 1.0)])
    cfg = settings(*TINY, f"gate.against={old}")
    for name in ("new", "more"):
        result = gate.run(cfg, Store(tmp_path / name), {}, [])
        assert (result.code, result.claim.note) == (GateCode.cannot_tell, REHEARSAL)
        assert result.claim.word is Word.unknown
    cfg = settings(*TINY, f"gate.against={tmp_path / 'more'}")
    fewer = gate.run(cfg, Store(tmp_path / "old"), {}, [])
    assert fewer.code is GateCode.cannot_tell
    assert fewer.claims["another"].note not in ("", REHEARSAL), "why it is not compared"


def by_language(right: int, column: str = "language") -> dict[str, object]:
    """Return what a policy learnt, with so many of 40 pairs in German in order, and all others."""
    values, rows = list[str | None](), list[PairMargin]()
    for number in range(80):
        in_order = float(number < right or number >= 40)
        rows.append(PairMargin(str(number), in_order, in_order - 0.5, 0.0, (4.0, 5.0, 6.0)))
        values.append("de" if number < 40 else "en")
    groups = groups_of_column(column, values, rows, 0.95)
    mark_reversed(groups, rows)
    figures = learnt({"policy": (0.9, 0.8, 0.95)})
    by = PairGroups(0.0, [each.group for each in groups])
    return asdict(replace(figures, by=by))


def test_a_group_that_is_reversed_and_was_not_is_worse_and_all_are_shown(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = published(built, tmp_path / "old", measured(100), learnt=by_language(36))
    for seed, name, right, against, code in (
        (1, "same", 34, str(old), GateCode.passes),
        (1, "reversed", 2, str(old), GateCode.worse),
        (2, "still", 1, str(tmp_path / "reversed"), GateCode.passes),
        (1, "than_before", 2, "sft", GateCode.worse),
    ):
        rows = [*measured(seed), *of_sft(measured(100))]
        published(built, tmp_path / name, rows, learnt=by_language(right))
        cfg = settings(*TINY, f"gate.against={against}")
        result = gate.run(cfg, Store(tmp_path / name), {}, [])
        assert result.code == code, name
        shares = {line.group: round(40 * line.after.mean) for line in result.groups}
        assert shares == {"language = de": right, "language = en": 40}
        result.show()
        printed = capsys.readouterr().out
        assert "language = en" in printed
        assert ("group language = de" in printed) is (code is GateCode.worse)


@pytest.mark.parametrize("earlier", [None, {"by": None}, by_language(36, column="source")])
def test_a_reversed_group_that_the_earlier_policy_lacks_is_not_passed_over(
    earlier: dict[str, object] | None, built: Path, tmp_path: Path
) -> None:
    learnt_before = by_language(36) | earlier if earlier else None
    old = published(built, tmp_path / "old", measured(100), learnt=learnt_before)
    for name, right, code in (
        ("fine", 34, GateCode.passes),
        ("reversed", 2, GateCode.other_prompts),
    ):
        published(built, tmp_path / name, measured(1), learnt=by_language(right))
        result = gate.run(settings(*TINY, f"gate.against={old}"), Store(tmp_path / name), {}, [])
        assert result.code == code, name
        assert {line.group: line.before for line in result.groups} == {
            "language = de": None,
            "language = en": None,
        }
        result.show()
        is_named = any("language = de" in reason for reason in result.reasons)
        assert is_named is (code is GateCode.other_prompts)
    published(
        built, tmp_path / "rehearsal", measured(2), learnt=by_language(2), rehearsal=REHEARSED
    )
    result = gate.run(settings(*TINY, f"gate.against={old}"), Store(tmp_path / "rehearsal"), {}, [])
    assert result.code == GateCode.cannot_tell


def test_no_group_of_another_model_is_made_up(built: Path, tmp_path: Path) -> None:
    rows = [*measured(1), *(replace(row, role="control") for row in measured(1))]
    models = {"sft": "SFT", "control": "Control", "policy": "DPO"}
    published(built, tmp_path, rows, models=models, learnt=by_language(2))
    result = gate.run(settings(*TINY, "gate.against=control"), Store(tmp_path), {}, [])
    assert result.groups == []
    assert result.code == GateCode.passes


def test_a_third_by_length_that_is_reversed_makes_nothing_worse(
    built: Path, tmp_path: Path
) -> None:
    rows = [*measured(1), *of_sft(measured(100))]
    published(built, tmp_path, rows, learnt=by_language(2, column=LENGTH_COLUMNS[0]))
    result = gate.run(settings(*TINY, "gate.against=sft"), Store(tmp_path), {}, [])
    assert result.code == GateCode.passes
    assert len(result.groups) == 2


@pytest.mark.parametrize(
    ("against", "way_out"),
    [("control", "control=true"), ("base", "gate.against=sft"), ("kto", "gate.against=sft")],
)
def test_a_model_that_a_run_lacks_is_refused_with_those_that_it_has(
    built: Path, tmp_path: Path, against: str, way_out: str
) -> None:
    published(built, tmp_path, measured(1), models={"sft": "SFT", "policy": "DPO"})
    with pytest.raises(UserError, match=re.escape(f"gate.against={against}: ")) as error:
        gate.run(settings(*TINY, f"gate.against={against}"), Store(tmp_path), {}, [])
    assert way_out in str(error.value)


def test_two_equal_evaluations_are_an_error_wherever_they_lie(built: Path, tmp_path: Path) -> None:
    new = published(built, tmp_path / "new", measured(1))
    copied = Path(shutil.copytree(new, tmp_path / "accepted" / "eval" / new.name))
    for against in (str(new), str(copied), new.name, str(tmp_path / "new"), "policy"):
        ran = inside("stage=gate", f"outputs={tmp_path / 'new'}", f"gate.against={against}")
        assert ran.returncode == GateCode.other_prompts
        assert f"gate.against={against}" in ran.stderr
        assert "stage=gate" in ran.stderr and "gate.against=sft" in ran.stderr
        assert not (tmp_path / "new" / "gate.json").exists()


@pytest.mark.extended
def test_a_run_names_its_evaluations_and_an_error_has_the_code_of_no_comparison(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = chain.manifest("eval")["fingerprint"]
    policy = chain.manifest("dpo")["fingerprint"]
    report = chain.manifest("report")["fingerprint"]
    named = [
        gate.earlier_evaluations(Store(chain.root), each) for each in (fingerprint, policy, report)
    ]
    assert named == [[chain.folder("eval")]] * 3
    monkeypatch.setenv("HOME", str(chain.root.parent))
    assert gate.earlier_evaluations(Store(chain.root), f"~/{chain.root.name}")
    missing = inside("stage=gate", f"outputs={chain.root}", "gate.against=ffffffffffff")
    assert (missing.returncode, "gate.against=ffffffffffff" in missing.stderr) == (2, True)
    with pytest.raises(UserError, match="is no evaluation or report"):
        gate.earlier_evaluations(Store(chain.root), str(chain.folder("sft")))
    with pytest.raises(UserError, match=r"gate\.against"):
        gate.run(settings(*TINY), Store(tmp_path), {}, [])


def test_an_unexpected_error_is_not_the_code_of_a_worse_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "read_typed_arguments", lambda: ["stage=gate"])
    with pytest.raises(SystemExit) as end, explained():
        raise ZeroDivisionError("planted")
    assert end.value.code == GateCode.other_prompts
    assert "Traceback" in capsys.readouterr().err


def test_a_gate_is_an_object_and_its_code_is_no_error(chain: Chain) -> None:
    outputs = f"outputs={chain.root}"
    against = "gate.against=sft"
    compared = result(gate.GateResult, outputs, "stage=gate", against, code=GateCode.cannot_tell)
    written = json.loads((chain.root / "gate.json").read_text())
    assert written == compared
    assert (compared["claim"]["word"], compared["outcome"]) == (Word.unknown, Word.unknown)
    assert compared["claims"].keys() == {line["measure"] for line in compared["lines"]}
    failed = reply(outputs, "stage=gate", "gate.against=ffffffffffff")
    assert (failed["exit_code"], failed["result"]) == (GateCode.other_prompts, None)
    assert "gate.against=ffffffffffff" in failed["error"]
