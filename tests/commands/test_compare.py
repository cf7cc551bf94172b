"""The comparison of evaluations: what it shows, what it refuses to say, and that it builds nothing."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from stages.commands.compare import Group, Row, differences, evaluations, grouped, table
from stages.config.errors import UserError
from stages.store.store import Store, read_manifest
from tests.helpers import CHROMIUM, Chain, as_published, build, fits, made_once, nodes

VALIDATION = ("stage=eval", "answer.split=validation")


@pytest.fixture(scope="module")
def compared_once(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two betas on validation prompts, beside the chain's own evaluation on test, and the page."""

    def make(root: Path) -> None:
        shutil.copytree(built, root, symlinks=True)
        build(root, *VALIDATION)
        build(root, *VALIDATION, "dpo.beta=0.7")
        build(root, "stage=compare")

    return made_once(tmp_path_factory, "compared", make)


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path) -> Chain:
    return Chain(shutil.copytree(compared_once, tmp_path / "outputs", symlinks=True))


def test_rows_are_those_of_the_store_with_what_differs_and_what_came_out(compared: Chain) -> None:
    by_split = {group.split: group for group in grouped(evaluations(Store(compared.root), None))}
    assert {split: len(group.rows) for split, group in by_split.items()} == {"test": 1, "validation": 2}
    group = by_split["validation"]
    assert list(group.columns) == ["dpo.beta"]
    for row, beta in zip(group.rows, group.columns["dpo.beta"], strict=True):
        overrides = (*VALIDATION, f"dpo.beta={beta}")
        manifest = compared.manifest("eval", *overrides)
        assert row.fingerprint == manifest["fingerprint"]
        assert row.rate == manifest["metrics"]["pass_rate"]["policy"]
        assert row.kl == manifest["metrics"]["kl"]["policy"]["per_token"]
        lineage = nodes(compared.root, *overrides)["eval"].lineage
        spent = [read_manifest(Store(compared.root).folder(node))["wall_seconds"] for node in lineage]
        assert row.seconds == pytest.approx(sum(spent))
    assert group.rows[0].rate >= group.rows[1].rate


def test_no_row_is_called_the_winner_and_the_split_is_named(compared: Chain) -> None:
    groups = {group.split: group for group in grouped(evaluations(Store(compared.root), None))}
    note = groups["validation"].note
    assert "looks better than it is. Read test once, with what is chosen" in note
    assert "for the first row: python run.py stage=report" in note
    assert "answer.split" not in note
    assert groups["test"].note == "", "nothing was chosen"
    build(compared.root, "stage=eval", "dpo.beta=0.7")
    [note] = [group.note for group in grouped(evaluations(Store(compared.root), None)) if group.split == "test"]
    assert "Choose by answer.split=validation" in note


def test_the_front_holds_rows_that_no_other_beats() -> None:
    def row(name: str, rate: float, kl: float, **settings: object) -> Row:
        results = {"primary": {"policy": {"mean": rate}}, "kl": {"policy": {"per_token": kl}}}
        return Row(name, ("validation", "data"), settings, results, 1.0, "python run.py stage=eval")

    rows = [row("a", 0.5, 0.3), row("b", 0.4, 0.1), row("c", 0.4, 0.2), row("d", 0.3, 0.1), row("e", 0.3, 0.0)]
    assert Group(rows).front == [True, True, False, False, True]
    seeds = [row(n, 0.5, 0.1, **{"sft.seed": n, "dpo.seed": n, "dpo.beta": "0.1"}) for n in ("0", "1")]
    assert Group(seeds).columns == {"dpo.seed, sft.seed": ["0", "1"]}, "what moves together shares a column"


def test_a_mixed_store_is_readable_in_80_columns(compared: Chain) -> None:
    """Rows from other data, without a stage that the others have, and with many settings of their own."""
    toys = ("label=dataset", "label.path=package:stages/tasks/toy_preferences.jsonl", "dpo.max_length=256")
    build(compared.root, *VALIDATION, "dpo.beta=0.3")
    build(compared.root, *VALIDATION, *toys)
    [group] = [group for group in grouped(evaluations(Store(compared.root), None)) if group.split == "validation"]
    console = Console(width=80, file=io.StringIO())
    console.print(table(group))
    console.print(differences(group))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines[: 2 + len(group.rows)]), "no figure is cut off"
    told = dict(zip([row.fingerprint for row in group.rows], group.settings, strict=True))
    for beta in (0.1, 0.3, 0.7):
        mine = compared.manifest("eval", *VALIDATION, f"dpo.beta={beta}")["fingerprint"]
        assert told[mine] == f"dpo.beta={beta}"
    other = told[compared.manifest("eval", *VALIDATION, *toys)["fingerprint"]]
    assert re.search(r"label.path=toy_preferences.jsonl \(\w{6}\), no sample$", other)
    assert not re.search(r"sample\.|[0-9a-f]{12}", other)


def test_a_sweep_limits_the_rows_and_another_folder_is_refused(compared: Chain, tmp_path: Path) -> None:
    job = tmp_path / "sweep" / "0"
    job.mkdir(parents=True)
    wanted = compared.manifest("eval", *VALIDATION)["fingerprint"]
    (job / "nodes.json").write_text(f'{{"eval": "{wanted}"}}')
    assert [row.fingerprint for row in evaluations(Store(compared.root), str(tmp_path / "sweep"))] == [wanted]
    with pytest.raises(UserError, match="holds no jobs of a sweep"):
        evaluations(Store(compared.root), str(tmp_path))
    with pytest.raises(UserError, match="stage=eval makes one"):
        evaluations(Store(tmp_path), None)


def test_it_builds_nothing_and_reads_what_is_left_of_a_lineage(compared: Chain) -> None:
    shutil.rmtree(compared.folder("sample"))
    left = compared.count()
    build(compared.root, "stage=compare")
    assert compared.count() == left


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_has_every_row_and_fits_a_phone_or_a_desk(width: int, compared: Chain, tmp_path: Path) -> None:
    page = compared.root / "compare.html"
    html = page.read_text()
    assert html.count("<svg") == 2
    assert all(row.fingerprint in html for row in evaluations(Store(compared.root), None))
    assert fits(page, width, tmp_path)


def test_evaluations_of_an_earlier_version_are_left_out_and_told(
    compared: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    """Their results name no models; what they compared went by other names."""
    rows = evaluations(Store(compared.root), None)
    results = compared.folder("eval") / "results.json"
    old = {key: value for key, value in json.loads(results.read_text()).items() if key != "models"}
    results.write_text(json.dumps(old))
    as_published(compared.folder("eval"), "results.json")
    with caplog.at_level("INFO"):
        assert len(evaluations(Store(compared.root), None)) == len(rows) - 1
    assert "1 evaluations of an earlier version are left out" in caplog.text
