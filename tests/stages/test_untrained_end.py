"""A base that never chatted: its end of turn lies among thousands of unused tokens. SFT gives it a row of its own, and
a run of a model that got none says so in time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

import stages.base
from stages.config.choices import Unfinished
from stages.models.contract import Contract
from stages.models.loading import load_model, load_tokenizer
from stages.objectives import sft
from stages.samplers.endings import Endings, endings
from stages.store.records import Candidate, Pair, load
from stages.store.truncation import MOST, ending_advice, resolve_unfinished
from stages.training import end_of_turn
from stages.training.end_of_turn import (
    ALIKE_COSINE,
    MANY_ALIKE_ROWS,
    measure_similarity,
    separate_end_of_turn,
)
from tests.helpers import Chain, build, settings
from tests.rows import work

UNUSED, COSINE = 2000, 0.91
TURNS = ("<|im_start|>", "<|im_end|>")
SIZES = (
    "template=chatml",
    *(
        "sft.learning_rate=2e-3",
        "sft.epochs=2",
        "sft.batch_size=8",
        "sft.evaluations=1",
        "sft.runtime.samples=0",
    ),
    *("data.tasks.sft=96", "data.tasks.preference=32"),
    *(
        "dpo.learning_rate=3e-3",
        "dpo.evaluations=0",
        "dpo.runtime.samples=0",
        "pairs=all",
        "pairs.max_per_prompt=16",
    ),
)
COOL, HOT = "sample.temperatures=[0.4]", "sample.temperatures=[0.9]"


def base_that_never_chatted(folder: Path) -> Path:
    """The tiny base with unused tokens. In its embedding, which is the output's too, rows of these and of the turns'
    tokens share a direction."""
    stages.base.run(settings("recipe=tiny").model, {}, work(folder))
    tokenizer, model = load_tokenizer(folder / "model"), load_model(folder / "model")
    used = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<unused{i}>", special=True) for i in range(UNUSED)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedding, random = (
        model.get_input_embeddings().weight.detach(),
        torch.Generator().manual_seed(0),
    )
    length = embedding[:used].norm(dim=-1).mean()
    rows = [*range(used, len(tokenizer)), *tokenizer.convert_tokens_to_ids(TURNS)]
    directions = torch.randn(1 + len(rows), embedding.shape[1], generator=random)
    directions = torch.nn.functional.normalize(directions, dim=-1) * length
    embedding[rows] = directions[0] + directions[1:] * (1 / COSINE - 1) ** 0.5
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_that_never_chatted(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def chain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chain, tuple[str, ...]]:
    """A chain from such a base, sampled at 0.4, and its overrides. SFT trains as other programs do, without a new row.
    Do not write to it."""
    folder = tmp_path_factory.mktemp("untrained")
    overrides = (f"model.path={base}", *SIZES, COOL, "pairs.unfinished=keep")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sft, "separate_end_of_turn", lambda model, contract: model)
        build(folder / "outputs", "stage=report", *overrides)
    return Chain(folder / "outputs"), overrides


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), ("sft.adapter=lora", "dpo.adapter=continued")])
def test_with_a_row_of_its_own_the_end_of_turn_is_learnt_and_kept(
    adapters: tuple[str, ...], base: Path, tmp_path: Path
) -> None:
    store, overrides = (
        Chain(tmp_path),
        (f"model.path={base}", *SIZES, HOT, "pairs.unfinished=keep", *adapters),
    )
    build(store.root, "stage=eval", *overrides)
    manifest, results = (
        store.manifest("sft", *overrides),
        store.folder("eval", *overrides) / "results.json",
    )
    assert not any(TURNS[1] in warning for warning in manifest["warnings"])
    figures = manifest["metrics"]["end_of_turn"]
    assert figures["before"]["alike"] >= UNUSED and figures["after"]["alike"] < MANY_ALIKE_ROWS
    if not adapters:
        assert store.manifest("sample", *overrides)["metrics"]["stop_rate"] > 0.95
        assert json.loads(results.read_text())["stop_rate"]["policy"] > 0.95


@pytest.mark.parametrize("tied", [True, False])
def test_the_new_row_is_that_of_the_end_of_sequence_unless_that_is_untrained_too(
    base: Path, tied: bool
) -> None:
    model, tokenizer = load_model(base), load_tokenizer(base)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rows = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    end, unused, trained = *tokenizer.convert_tokens_to_ids([TURNS[1], "<unused7>"]), 5
    for stops in ([unused, trained], [unused], []):
        before = [weight.detach().clone() for weight in rows]
        separate_end_of_turn(model, Contract(tokenizer, [end, *stops]))
        unchanged = [i for i in range(len(rows[0])) if i != end]
        for weight, old in zip(rows, before, strict=True):
            assert torch.equal(weight[unchanged], old[unchanged])
            assert torch.equal(weight[end], old[trained]) is (trained in stops)
            cosines = torch.nn.functional.cosine_similarity(
                weight[unchanged], weight[end : end + 1]
            )
            assert int((cosines >= ALIKE_COSINE).sum()) <= 1
        for weight in rows:
            weight.data[end] = weight.data[unused]
    before_all = rows[0].detach().clone()
    separate_end_of_turn(model, Contract(tokenizer, [trained]))
    assert torch.equal(rows[0], before_all), "a trained end of turn stays as it is"


@pytest.mark.extended
def test_sft_says_that_the_end_of_turn_is_not_told_apart(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    manifest = store.manifest("sft", *overrides)
    figures = manifest["metrics"]["end_of_turn"]
    assert figures["token"] == TURNS[1]
    assert (
        figures["before"]["alike"] >= UNUSED
        and figures["before"]["nearest"] > figures["after"]["nearest"]
    )
    [warning] = [w for w in manifest["warnings"] if TURNS[1] in w]
    assert f"{figures['after']['alike']:,} rows" in warning
    assert all(
        key in warning
        for key in ("sample.temperatures", "pairs.unfinished=drop", "sft.learning_rate")
    )


def test_sampling_says_that_few_end_and_how_many_at_each_temperature(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    hot = (*overrides, HOT)
    build(store.root, "stage=sample", *hot)
    metrics, warnings = (store.manifest("sample", *hot)[key] for key in ("metrics", "warnings"))
    assert metrics["stop_rate"] == metrics["by_temperature"]["0.9"]["ended"] < 0.2
    [warning] = [w for w in warnings if w.startswith("sample.temperatures=[0.9]")]
    assert f"{metrics['stop_rate']:.1%} of {metrics['candidates']}" in warning
    assert "Lower the temperature" in warning
    as_advised = store.manifest("sample", *overrides)
    assert (
        as_advised["metrics"]["by_temperature"]["0.4"]["ended"] > MOST
        and not as_advised["warnings"]
    )


@pytest.mark.extended
def test_unfinished_ones_are_dropped_unless_most_candidates_end(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    for temperature, rule in ((COOL, "keep"), ("sample.temperatures=[0.6]", "drop")):
        line = (*overrides, temperature, "pairs.unfinished=auto")
        build(store.root, "stage=pairs", *line)
        metrics = store.manifest("pairs", *line)["metrics"]
        pairs = load(store.folder("pairs", *line) / "pairs.parquet", Pair)
        assert metrics["unfinished_rule"] == rule
        assert (
            metrics["candidates_ended"] == store.manifest("sample", *line)["metrics"]["stop_rate"]
        )
        assert any(p.rejected_finish_reason == "length" for p in pairs) is (rule == "keep")
    assert (
        settings("recipe=tiny").pairs.unfinished
        is settings("recipe=tiny").unpaired.unfinished
        is Unfinished.auto
    )
    assert [resolve_unfinished(Unfinished.auto, share) for share in (0.5, 0.51)] == [
        Unfinished.drop,
        Unfinished.keep,
    ]
    assert resolve_unfinished(Unfinished.keep, 0.0) is Unfinished.keep


def test_the_verdict_says_in_the_same_breath_that_fewer_answers_end(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    results = json.loads((store.folder("eval", *overrides) / "results.json").read_text())
    rates = f"{results['stop_rate']['sft']:.1%} → {results['stop_rate']['policy']:.1%}"
    assert results["stop_rate"]["policy"] < MOST < results["stop_rate"]["sft"]
    sentence = results["verdict"].split(". ")[0]
    assert sentence.startswith("DPO ") and f"answers by itself: {rates}" in sentence
    assert rates in (store.folder("report", *overrides) / "report.html").read_text()


def test_a_model_that_ends_its_answers_is_told_nothing(built: Path) -> None:
    store = Chain(built)
    for stage in ("sft", "sample", "eval"):
        assert not any(
            "end of turn" in w or "by themselves" in w for w in store.manifest(stage)["warnings"]
        )
    assert store.manifest("sft")["metrics"]["end_of_turn"]["after"]["alike"] < MANY_ALIKE_ROWS
    assert "ends" not in store.manifest("eval")["metrics"]["verdict"]


def test_a_row_is_held_against_all_others_a_part_at_a_time(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Chain(built).folder("sft") / "model"
    rows = load_model(folder).get_output_embeddings().weight.detach().double()
    cosines = torch.nn.functional.cosine_similarity(rows, rows[2:3])
    cosines[2] = -1
    monkeypatch.setattr(end_of_turn, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(end_of_turn, "ALIKE_COSINE", 0.2)
    figures = measure_similarity(folder, 2)
    assert figures["nearest"] == pytest.approx(float(cosines.max()), abs=1e-6)
    assert (figures["nearest_id"], figures["alike"]) == (
        int(cosines.argmax()),
        int((cosines >= 0.2).sum()),
    )
    assert measure_similarity(folder, len(rows)) == {}


def test_endings_are_counted_by_temperature_and_by_prompt() -> None:
    def draw(prompt: str, temperature: float, text: str, ended: bool) -> Candidate:
        drawn = Candidate.from_text(prompt, text, "sft", "hf", 1)
        return replace(drawn, temperature=temperature, finish_reason="stop" if ended else "length")

    candidates = [
        *(draw("p", 0.5, text, True) for text in ("a", "a ", "b")),
        *(draw("p", 1.0, text, ended) for text, ended in (("a", True), ("b", False))),
        *(draw("q", 0.5, "a", True) for _ in range(3)),
    ]
    assert endings(candidates) == {0.5: Endings(6, 1.0, 0.5), 1.0: Endings(2, 0.5, 0.0)}
    assert ending_advice(0.51) == "" and "select.temperatures" in ending_advice(0.5, "select")
