"""Tests of `stage=compare`: its tables, its conclusions and their limits, and that it builds nothing."""

import io
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from stages.commands.node_settings import nodes_oldest_first, without_seeds
from stages.config.errors import UserError
from stages.extras.compare import command as compare
from stages.extras.compare.groups import ComparedGroup, compare_group, compare_groups
from stages.extras.compare.measured import MeasuredModel, measured_models
from stages.store.store import Store
from tests.browser import CHROMIUM
from tests.cli.test_json import reply, result
from tests.helpers import (
    Chain,
    build,
    fits,
    inside,
    made_once,
)

VALIDATION = ("stage=eval", "answer.split=validation")
TOYS = ("label=dataset", "dpo.max_length=256")


@pytest.fixture(scope="module")
def compared_once(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two betas evaluated on validation, the chain's evaluation on test, and the page."""

    def make(root: Path) -> None:
        shutil.copytree(built, root, symlinks=True)
        build(root, *VALIDATION)
        build(root, *VALIDATION, "dpo.beta=0.7")
        build(root, "stage=compare")

    return made_once(tmp_path_factory, "compared", make)


@pytest.fixture
def compared(compared_once: Path, tmp_path: Path) -> Chain:
    return Chain(shutil.copytree(compared_once, tmp_path / "outputs", symlinks=True))


def rows_of(chain: Chain, sweep: str | None = None) -> list[MeasuredModel]:
    store = Store(chain.root)
    chosen = compare.fingerprints_of_sweep(store, sweep)
    return measured_models(store, nodes_oldest_first(store), chosen)


def groups(chain: Chain, sweep: str | None = None) -> dict[str, ComparedGroup]:
    """Return the groups of a comparison by split."""
    return {group.split: group for group in compare_groups(rows_of(chain, sweep))}


def printed(*renderables: object) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    console.print(*renderables)
    return console.file.getvalue().splitlines()


def measured(name: str, rate: float, kl: float, **settings: str) -> MeasuredModel:
    return MeasuredModel(
        role="policy",
        title="DPO",
        fingerprint=name,
        prompts=("validation", "seen tasks", ""),
        tasks=[""] * 10,
        tasks_drawn=False,
        note="",
        settings={"a.name": name, **settings},
        passed=np.arange(10) < 10 * rate,
        figures={"kl": kl, "mean_tokens": 9.0, "stop_rate": 1.0},
        of_extras={},
        groups={},
        margins={},
    )


def test_rows_are_those_of_the_store_with_what_differs_and_what_came_out(compared: Chain) -> None:
    by_split = groups(compared)
    assert {split: len(group.settings) for split, group in by_split.items()} == {
        "test": 2,
        "validation": 3,
    }
    group = by_split["validation"]
    policies = [setting for setting in group.settings if not setting.is_sft]
    assert {setting.name for setting in policies} == {"dpo.beta=0.1", "dpo.beta=0.7"}
    for setting in policies:
        overrides = (*VALIDATION, setting.name)
        manifest = compared.manifest("eval", *overrides)
        metrics = manifest["metrics"]
        assert setting.evaluations == [manifest["fingerprint"]]
        assert setting.pass_rate.mean == metrics["pass_rate"]["policy"]
        assert setting.kl == metrics["kl"]["policy"]["per_token"]
    rates = [setting.pass_rate.mean for setting in group.settings]
    assert rates == sorted(rates, reverse=True)


def test_runs_of_a_setting_differ_in_seeds_and_roles() -> None:
    one = measured("x", 0.5, 0.1)
    other = measured("x", 0.4, 0.3)
    rows = []
    for row, seed, role in ((one, "0", "policy"), (other, "1", "dpo")):
        settings = without_seeds({**row.settings, "dpo.seed": seed})
        rows.append(replace(row, settings=settings, role=role))
    [setting] = compare_group(rows).settings
    rate = setting.pass_rate
    assert (rate.mean, setting.kl) == (pytest.approx(0.45), pytest.approx(0.2))
    assert rate.low < rate.mean < rate.high
    assert len(setting.evaluations) == 2


def test_held_out_pairs_stand_by_group_with_the_mean_of_seeds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = list[MeasuredModel]()
    for name, share in (("x", 0.9), ("x", 0.5), ("y", 0.2)):
        row = measured(name, 0.5, 0.1)
        rows.append(replace(row, groups={"language = de": share}, margins={"language = de": 0.02}))
    rows.append(measured("z", 0.5, 0.1))
    group = compare_group(rows)
    shares = {each.name: each.groups.get("language = de") for each in group.settings}
    assert shares == {
        "a.name=x": pytest.approx(0.7),
        "a.name=y": pytest.approx(0.2),
        "a.name=z": None,
    }
    compare.CompareResult([group], None).show()
    [line] = [each for each in capsys.readouterr().out.splitlines() if "language = de" in each]
    assert all(text in line for text in ("70.0 by +0.02", "20.0 by +0.02", "–"))
    html = compare.render_page([group])
    assert html.count('data-label="language = de"') == 3


def test_it_concludes_from_what_every_prompt_came_to(compared: Chain) -> None:
    group = groups(compared)["validation"]
    first, sft = (next(s for s in group.settings if s.is_sft is start) for start in (False, True))
    gain = first.gain_over_sft
    assert gain is not None
    assert gain.mean == pytest.approx(first.pass_rate.mean - sft.pass_rate.mean)
    assert gain.low <= gain.mean <= gain.high
    assert group.conclusion.startswith("No winner: 16 validation prompts cannot tell ")
    assert f"the difference, {gain.points()}, " in group.conclusion
    assert "is no more than chance" in group.conclusion
    [evaluation] = first.evaluations
    results = json.loads((compared.root / "eval" / evaluation / "results.json").read_text())
    expected = pytest.approx(results["primary"]["policy-sft"])
    assert vars(gain) == expected, "one difference has one interval, here and in the report"
    assert "Too few" not in group.conclusion, "trained tasks speak for themselves"
    assert "on test once" in group.note
    assert "answer.split" not in group.note
    for name in ("sample", "answer_sft", "answer_policy"):
        shutil.rmtree(compared.folder(name, *VALIDATION))
    left = compared.count()
    build(compared.root, "stage=compare")
    assert compared.count() == left, "it builds nothing, and reads what is left of a lineage"
    intervals = [setting.pass_rate for setting in group.settings]
    again = groups(compared)["validation"].settings
    assert [setting.pass_rate for setting in again] == intervals, (
        "the evaluation stores every outcome"
    )
    shutil.rmtree(compared.folder("data", *VALIDATION))
    assert not groups(compared), "its prompts are deleted"


PASSED = {"better": (12, 36), "worse": (36, 12), "same": (24, 24), "noted": (12, 36)}
NOTE = "a rehearsal cannot say"
EFFECTS = {
    "better": re.compile(r"\bwins\b|\bbetter, more"),
    "worse": re.compile(r"\bNo setting is better\b|\bworse, more"),
    "same": re.compile(r"\bNo winner\b|\bno more than chance\b"),
    "noted": re.compile(NOTE, re.IGNORECASE),
    "any": re.compile(r"(?<!no )\bmore than chance\b"),  # of better and worse
}


def texts_of_two(effect: str) -> str:
    """Return page, table and JSON of a comparison of SFT with a policy that has an effect."""
    rows = list[MeasuredModel]()
    for role, title, count in zip(("sft", "policy"), ("SFT", "DPO"), PASSED[effect], strict=True):
        row = replace(measured(title, 0.5, 0.1), role=role, title=title, tasks=[""] * 48)
        note = NOTE if effect == "noted" else ""
        rows.append(replace(row, passed=(np.arange(48) < count).astype(float), note=note))
    groups = compare_groups(rows)
    page = re.sub(r'<p class="note">.*?</p>', "", compare.render_page(groups))  # what words mean
    [group] = groups
    table = printed(group.conclusion, compare.settings_table(group))
    return "\n".join([page, *table, json.dumps(asdict(compare.CompareResult(groups, None)))])


@pytest.mark.parametrize("effect", PASSED)
def test_page_table_and_json_say_the_effect_that_the_claim_made_and_no_other(effect: str) -> None:
    text = texts_of_two(effect)
    expected = {effect, "any"} if effect in ("better", "worse") else {effect}
    assert {name for name, words in EFFECTS.items() if words.search(text)} == expected


def test_a_rehearsal_is_no_rival_of_a_run_on_the_same_prompts() -> None:
    rehearsal = replace(measured("toy", 1.0, 0.1), note=NOTE)
    groups = compare_groups([measured("a", 0.5, 0.1), measured("b", 0.4, 0.1), rehearsal])
    assert sorted(group.size() for group in groups) == [1, 2]


def test_objectives_have_their_names_and_what_they_share_or_vary() -> None:
    def trained_by(title: str, rate: float, **settings: str) -> MeasuredModel:
        row = measured(title, rate, 0.1)
        keys = {name.replace("__", "."): value for name, value in settings.items()}
        return replace(row, settings=keys, title=title)

    shared = {"dpo__epochs": "1", "sft__epochs": "2"}
    dpo = [
        trained_by("DPO", rate, dpo__beta=beta, **shared) for rate, beta in ((0.5, "1"), (0.4, "2"))
    ]
    grpo = trained_by("GRPO", 0.3, grpo__beta="0", sft__epochs="2")
    names = [setting.name for setting in compare_group([*dpo, grpo]).settings]
    assert names == ["dpo.beta=1", "dpo.beta=2", "GRPO"]
    group = compare_group([*dpo, replace(grpo, settings={"grpo.beta": "0", "sft.epochs": "3"})])
    assert [setting.name for setting in group.settings] == [
        "dpo.beta=1, sft.epochs=2",
        "dpo.beta=2, sft.epochs=2",
        "sft.epochs=3",
    ]
    assert [setting.name for setting in compare_group(dpo).settings] == ["dpo.beta=1", "dpo.beta=2"]


def test_the_front_holds_settings_that_no_other_beats() -> None:
    models = [("a", 0.5, 0.3), ("b", 0.4, 0.1), ("c", 0.4, 0.2), ("d", 0.3, 0.1), ("e", 0.3, 0.0)]
    group = compare_group([measured(*one) for one in models])
    assert [fingerprint for s in group.settings for fingerprint in s.evaluations] == [
        "a",
        "b",
        "c",
        "e",
        "d",
    ]
    assert [setting.best_at_kl for setting in group.settings] == [True, True, False, True, False]


@pytest.mark.slow
def test_a_mixed_store_is_readable_in_80_columns(compared: Chain, tmp_path: Path) -> None:
    """Rows from other data, without a stage, with a control, and with a file name that is HTML."""
    toys = tmp_path / "<img src=x>&.jsonl"
    shutil.copy("stages/tasks/toy_preferences.jsonl", toys)
    odd = (*TOYS, f"label.path='{toys}'")
    build(compared.root, *VALIDATION, "dpo.beta=0.3", "control=true")
    build(compared.root, *VALIDATION, *odd)
    build(compared.root, *VALIDATION, "data.tasks.sft=200", "data.tasks.validation=12")
    by_prompts = compare_groups(rows_of(compared))
    sizes = [len(group.settings) for group in by_prompts]
    assert sizes == [5, 2, 2, 2], "other prompts, and verdicts on other prompts, stand apart"
    group = by_prompts[0]
    lines = printed(compare.settings_table(group))
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines), "no figure is cut off"
    assert {"SFT", "Control", "dpo.beta=0.1", "dpo.beta=0.3", "dpo.beta=0.7"} == {
        s.name for s in group.settings
    }
    fingerprint = compared.manifest("eval", *VALIDATION, *odd)["fingerprint"]
    [own] = [
        each
        for each in by_prompts
        if any(fingerprint in s.evaluations and not s.is_sft for s in each.settings)
    ]
    assert own is not group
    build(compared.root, "stage=compare")
    page = (compared.root / "compare.html").read_text()
    assert "<img" not in page
    assert "two tables" in page


def test_a_sweep_limits_the_rows_and_another_folder_is_refused(
    compared: Chain, tmp_path: Path
) -> None:
    job = tmp_path / "sweep" / "0"
    job.mkdir(parents=True)
    fingerprint = compared.manifest("eval", *VALIDATION)["fingerprint"]
    (job / "nodes.json").write_text(f'{{"eval": "{fingerprint}"}}')
    [group] = groups(compared, str(tmp_path / "sweep")).values()
    assert {each for s in group.settings for each in s.evaluations} == {fingerprint}
    with pytest.raises(UserError, match="the folder of a sweep"):
        groups(compared, str(tmp_path))
    assert "Make one with stage=eval" in inside(f"outputs={tmp_path}", "stage=compare").stderr


@pytest.mark.extra("gc")
@pytest.mark.extended
def test_gc_keeps_what_the_page_shows_until_it_is_deleted(compared: Chain) -> None:
    """The sweep's folder is deleted or elsewhere, and the report belongs to another run."""
    build(compared.root)
    model = str(compared.folder("dpo", "dpo.beta=0.7"))
    gc = ("recipe=tiny", "tracker=none", f"outputs={compared.root}", "stage=gc")
    assert model not in inside(*gc).stdout
    (compared.root / "compare.html").unlink()
    assert model in inside(*gc).stdout


@pytest.mark.extended
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_has_every_row_and_fits_a_phone_or_a_desk(
    width: int, compared: Chain, tmp_path: Path
) -> None:
    page = compared.root / "compare.html"
    html = page.read_text()
    assert html.count('aria-label="Pass rate against KL: ') == 2
    assert all(row.fingerprint in html for row in rows_of(compared))
    assert html.count("<th ") == html.count('<th scope="'), "of a row or a column"
    for group in groups(compared).values():
        for sentence in group.conclusion.split(". "):
            assert sentence in html.replace("<wbr>", "")
    assert fits(page, width, tmp_path)


def test_it_is_an_object(chain: Chain) -> None:
    compared = result(compare.CompareResult, f"outputs={chain.root}", "stage=compare")
    assert Path(compared["page"]).exists() and compared["groups"][0]["settings"]


def test_json_of_a_sweep_is_refused_with_the_command_that_has_it(tmp_path: Path) -> None:
    refusal = reply(f"outputs={tmp_path}", "stage=plan", "dpo.beta=0.1,0.2", "-m")
    assert "stage=compare compare.sweep=FOLDER --json" in refusal["error"]
