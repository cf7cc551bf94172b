"""Tests of `stage=compare`: its tables, its conclusions and their limits, and that it builds nothing."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from stages.commands import compare
from stages.commands.compare import published_nodes
from stages.commands.comparing.groups import ComparedGroup, compare_group, compare_groups
from stages.commands.comparing.measured import Row, measured_rows
from stages.commands.node_settings import lineage, lineage_settings, varying, without_seeds
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.pipeline.graph import with_seed
from stages.store.manifest import read_manifest
from stages.store.records import Candidate, Example, PairLogProbs, load, save
from stages.store.store import Store
from tests.helpers import (
    CHROMIUM,
    Chain,
    as_published,
    build,
    fits,
    inside,
    made_once,
    nodes,
    settings,
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


def rows_of(chain: Chain, sweep: str | None = None) -> list[Row]:
    store = Store(chain.root)
    chosen = compare.nodes_of_sweep(store, sweep)
    return measured_rows(store, compare.published_nodes(store), chosen)


def groups(chain: Chain, sweep: str | None = None) -> dict[str, ComparedGroup]:
    """Return the groups of a comparison by split."""
    return {group.split: group for group in compare_groups(rows_of(chain, sweep))}


def printed(*renderables: object) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    console.print(*renderables)
    return console.file.getvalue().splitlines()


def measured(name: str, rate: float, kl: float, **settings: str) -> Row:
    return Row(
        role="policy",
        title="DPO",
        fingerprint=name,
        command="",
        prompts=("validation", "seen tasks", ""),
        tasks=[""] * 10,
        tasks_drawn=False,
        caveat="",
        settings={"a.name": name, **settings},
        passed=np.arange(10) < 10 * rate,
        figures={"kl": kl, "mean_tokens": 9.0, "stop_rate": 1.0, "seconds": 1.0, "flops": 1.0},
        benchmarks={},
        retained="–",
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
        lineage = nodes(compared.root, *overrides)["answer_policy"].lineage
        spent = [
            read_manifest(Store(compared.root).folder(node))["wall_seconds"] for node in lineage
        ]
        assert setting.seconds == pytest.approx(sum(spent))
        assert setting.flops == pytest.approx(flops_by_hand(compared, overrides))
    rates = [setting.pass_rate.mean for setting in group.settings]
    assert rates == sorted(rates, reverse=True)


def flops_by_hand(chain: Chain, overrides: tuple[str, ...]) -> float:
    """Return the operations of DPO's lineage from the tables of its nodes: 2 a token read, 6 a token trained."""
    tables = (
        ("sample", "candidates.parquet", Candidate),
        ("reference", "logprobs.parquet", PairLogProbs),
    )
    candidates, pairs = (
        load(chain.folder(stage, *overrides) / name, kind) for stage, name, kind in tables
    )
    contract = load_contract(chain.folder("sft", *overrides) / "model")
    prompt_ids = {c.prompt_id for c in candidates}
    examples = load(chain.folder("data", *overrides) / "examples.parquet", Example)
    read = sum(len(contract.prompt(e.messages)) for e in examples if e.id in prompt_ids)
    read += sum(c.n_tokens for c in candidates)
    read += sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    trained = sum(
        chain.manifest(stage, *overrides)["metrics"]["tokens"] for stage in ("sft", "dpo")
    )
    return float(
        chain.manifest("base", *overrides)["metrics"]["parameters"] * (2 * read + 6 * trained)
    )


def test_a_model_is_one_setting_in_any_role_and_its_time_is_a_mean_over_runs() -> None:
    policy = measured("same", 0.5, 0.1)
    arm = replace(policy, role="dpo", figures=policy.figures | {"seconds": 3.0})
    [setting] = compare_group([policy, arm]).settings
    assert (setting.seconds, setting.pass_rate.mean) == (2.0, 0.5)
    assert len(setting.evaluations) == 2


@pytest.mark.slow
def test_models_of_sft_alone_are_settings_to_choose_from(chain: Chain) -> None:
    rates = ("sft.learning_rate=1e-3", "sft.learning_rate=3e-3")
    for rate in rates:
        build(chain.root, *VALIDATION, "align=none", rate)
    build(chain.root, "stage=compare")
    group = groups(chain)["validation"]
    assert [setting.name.startswith("SFT (sft.learning_rate=") for setting in group.settings] == [
        True,
        True,
    ]
    best = max(
        chain.manifest("eval", *VALIDATION, "align=none", r)["metrics"]["pass_rate"]["policy"]
        for r in rates
    )
    assert group.conclusion.startswith("Of 2 settings, ")
    assert group.settings[0].pass_rate.mean == best
    assert [setting.gain_over_sft for setting in group.settings] == [None, None]
    assert group.gain_title == ""
    page = (chain.root / compare.PAGE).read_text().replace("<wbr>", "")
    assert group.settings[0].name in page


def test_it_concludes_from_what_every_prompt_came_to(compared: Chain) -> None:
    group = groups(compared)["validation"]
    first, sft = (next(s for s in group.settings if s.is_sft is start) for start in (False, True))
    gain = first.gain_over_sft
    assert gain is not None
    assert gain.mean == pytest.approx(first.pass_rate.mean - sft.pass_rate.mean)
    assert gain.low <= gain.mean <= gain.high
    assert "of 16 validation prompts" in group.conclusion
    assert f"the difference, {gain.points()}, " in group.conclusion
    assert "is no more than chance" in group.conclusion
    [evaluation] = first.evaluations
    results = json.loads((compared.root / "eval" / evaluation / "results.json").read_text())
    expected = pytest.approx(results["primary"]["policy-sft"])
    assert vars(gain) == expected, "one difference has one interval, here and in the report"
    is_better = first.pass_rate.mean <= sft.pass_rate.mean
    assert ("better than SFT" in group.conclusion) == is_better
    assert "Too few" not in group.conclusion, "trained tasks speak for themselves"
    shutil.rmtree(compared.folder("answer_policy", *VALIDATION))
    intervals = [setting.pass_rate for setting in group.settings]
    again = groups(compared)["validation"].settings
    assert [setting.pass_rate for setting in again] == intervals, (
        "the evaluation stores every outcome"
    )
    shutil.rmtree(compared.folder("data", *VALIDATION))
    assert not groups(compared), "its prompts are deleted"


def test_the_best_is_not_trusted_and_the_split_is_named(compared: Chain) -> None:
    note = groups(compared)["validation"].note
    assert "on test once" in note
    assert "answer.split" not in note
    assert groups(compared)["test"].note == "", "nothing was chosen"
    build(compared.root, "stage=eval", "dpo.beta=0.7")
    assert "Choose with answer.split=validation" in groups(compared)["test"].note


def test_an_estimate_of_kl_below_0_is_not_nearer_to_sft_than_sft(compared: Chain) -> None:
    folder = compared.folder("eval", *VALIDATION)
    results = json.loads((folder / "results.json").read_text())
    results["kl"]["policy"]["per_token"] = -1e-6
    (folder / "results.json").write_text(json.dumps(results))
    as_published(folder, "results.json")
    [setting] = [s for s in groups(compared)["validation"].settings if s.name == "dpo.beta=0.1"]
    assert setting.kl == 0.0


def test_several_sfts_have_a_best_one() -> None:
    models = [
        replace(measured(name, rate, 0.0), role="sft") for name, rate in (("a", 0.5), ("b", 0.4))
    ]
    rows = [*models, measured("c", 0.6, 0.1)]
    assert "over best SFT" in "".join(printed(compare.figures_table(compare_group(rows))))


def test_objectives_have_their_names_and_what_they_share_or_vary() -> None:
    def trained_by(title: str, rate: float, **settings: str) -> Row:
        row = measured(title, rate, 0.1)
        keys = {name.replace("__", "."): value for name, value in settings.items()}
        return replace(row, settings=keys, title=title)

    shared = {"dpo__epochs": "1", "sft__epochs": "2"}
    dpo = [
        trained_by("DPO", rate, dpo__beta=beta, **shared) for rate, beta in ((0.5, "1"), (0.4, "2"))
    ]
    grpo = trained_by("GRPO", 0.3, grpo__beta="0", sft__epochs="2")
    names = [setting.name for setting in compare_group([*dpo, grpo]).settings]
    assert names == ["DPO (dpo.beta=1)", "DPO (dpo.beta=2)", "GRPO"]
    group = compare_group([*dpo, replace(grpo, settings={"grpo.beta": "0", "sft.epochs": "3"})])
    assert [setting.name for setting in group.settings] == [*names[:2], "GRPO (sft.epochs=3)"]
    assert group.common_settings == {"sft.epochs": "2"}
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


def test_settings_that_change_together_are_one() -> None:
    together = [{"sft.epochs": n, "dpo.epochs": n, "dpo.beta": "0.1"} for n in ("1", "2")]
    assert varying(together) == {"dpo.epochs=sft.epochs": ("1", "2")}
    stages = ("answer", "dpo", "reference", "sft")
    precise = [{f"{stage}.precision": value for stage in stages} for value in ("fp32", "bf16")]
    assert varying(precise) == {"precision": ("fp32", "bf16")}
    lists = [{"sample.pool[0].n": "1"}, {"sample.pool[0].n": "1", "sample.pool[1].n": "2"}]
    assert varying(lists) == {"sample.pool[1].n": ("–", "2")}


def test_seeds_of_a_setting_are_runs_of_it() -> None:
    one, other = measured("x", 0.5, 0.1), measured("x", 0.4, 0.3)
    seeds = [
        replace(row, settings=without_seeds({**row.settings, "dpo.seed": n}))
        for row, n in ((one, "0"), (other, "1"))
    ]
    [setting] = compare_group(seeds).settings
    rate = setting.pass_rate
    assert (rate.mean, setting.kl) == (pytest.approx(0.45), pytest.approx(0.2))
    assert rate.low < rate.mean < rate.high


@pytest.mark.extended
def test_every_source_of_the_data_is_a_setting_and_no_seed_of_a_stage_is_one(
    tmp_path: Path,
) -> None:
    """A source must not hide the others, and the seed of a reward model must not count as a setting."""
    root = tmp_path / "outputs"
    settings_by_run = []
    for folder, answers in (("a", ("A fir.", "An oak.")), ("b", ("A fir.", "A pike."))):
        files = [tmp_path / folder / f"{i}.jsonl" for i in range(len(answers))]
        files[0].parent.mkdir()
        for file, answer in zip(files, answers, strict=True):
            file.write_text(
                json.dumps({"prompt": f"Name one, as in {file.stem}.", "completion": answer})
            )
        sources = (
            f"data.sources=[{', '.join(f'{{path: {file}, splits: {{sft: 1}}}}' for file in files)}]"
        )
        build(root, "stage=data", sources)
        fingerprint = nodes(root, sources)["data"].fingerprint
        settings_by_run.append(
            lineage_settings(lineage(published_nodes(Store(root)), ("data", fingerprint)))
        )
    differ = {
        key for key in settings_by_run[0] if settings_by_run[0][key] != settings_by_run[1][key]
    }
    assert differ == {"data.sources[1].source.path"}
    cfg = settings()
    another = with_seed(cfg, cfg.seed + 1)
    varied = {
        n
        for n in vars(cfg)
        if getattr(getattr(cfg, n), "seed", 0) != getattr(getattr(another, n), "seed", 0)
    }
    assert "reward" in varied
    assert without_seeds({f"{name}.seed": "1" for name in varied}) == {}


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
    lines = printed(compare.figures_table(group), compare.settings_table(group))
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines[: 2 + len(group.settings)]), "no figure is cut off"
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


def test_a_model_that_two_evaluations_measured_is_told_once(compared: Chain) -> None:
    build(compared.root, *VALIDATION, "eval.likelihood_prompts=4")
    fingerprint = compared.manifest("eval", *VALIDATION, "eval.likelihood_prompts=4")["fingerprint"]
    group = groups(compared)["validation"]
    assert len(group.settings) == 3
    [setting] = [setting for setting in group.settings if setting.name == "dpo.beta=0.1"]
    assert setting.evaluations == [fingerprint], "by the last"


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


@pytest.mark.extended
def test_a_prompt_that_one_model_could_not_read_leaves_the_others_comparable(chain: Chain) -> None:
    file = chain.folder("answer_base") / "answers.parquet"
    seen = {
        e.id for e in load(chain.folder("data") / "examples.parquet", Example) if e.group == "seen"
    }
    answers = load(file, Candidate)
    long = next(a for a in answers if a.prompt_id in seen)
    save(file, [a for a in answers if a is not long], Candidate)
    as_published(file.parent, file.name)
    before = [row.passed for row in rows_of(chain)]
    build(chain.root, "stage=report", "rebuild=eval")
    after = [row.passed for row in rows_of(chain)]
    assert [len(passed) for passed in after] == [len(passed) - 1 for passed in before]


def test_it_builds_nothing_and_reads_what_is_left_of_a_lineage(compared: Chain) -> None:
    for name in ("sample", "answer_sft", "answer_policy"):
        shutil.rmtree(compared.folder(name))
    left = compared.count()
    build(compared.root, "stage=compare")
    assert compared.count() == left


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
    assert groups(compared)["validation"].conclusion in html.replace("<wbr>", "")
    assert fits(page, width, tmp_path)
