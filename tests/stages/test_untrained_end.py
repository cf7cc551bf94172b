"""A base that never chatted: its end of turn lies among thousands of unused tokens. SFT gives it a row of its own, and
a run of a model that got none says so in time."""

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken

import stages.base
from stages.models.contract import Contract
from stages.models.loading import load_model, load_tokenizer
from stages.objectives import sft
from stages.store.truncation import MOST
from stages.training.end_of_turn import (
    separate_end_of_turn,
)
from tests.helpers import Chain, build, settings
from tests.rows import work

UNUSED = 2000
COSINE = 0.91
TURNS = ("<|im_start|>", "<|im_end|>")
SIZES = (
    "template=chatml",
    "sft.learning_rate=2e-3",
    "sft.epochs=2",
    "sft.batch_size=8",
    "sft.evaluations=1",
    "sft.runtime.samples=0",
    "data.tasks.sft=96",
    "data.tasks.preference=32",
)
COOL = "sample.temperatures=[0.4]"
HOT = "sample.temperatures=[0.9]"


def base_that_never_chatted(folder: Path) -> Path:
    """The tiny base with unused tokens. In its embedding, which is the output's too, rows of these and of the turns'
    tokens share a direction."""
    stages.base.run(settings("recipe=tiny").model, {}, work(folder))
    tokenizer = load_tokenizer(folder / "model")
    model = load_model(folder / "model")
    used = len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<unused{i}>", special=True) for i in range(UNUSED)])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedding = model.get_input_embeddings().weight.detach()
    rows = [*range(used, len(tokenizer)), *tokenizer.convert_tokens_to_ids(TURNS)]
    random = torch.Generator().manual_seed(0)
    directions = torch.randn(1 + len(rows), embedding.shape[1], generator=random)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    directions *= embedding[:used].norm(dim=-1).mean()
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
    overrides = (f"model.path={base}", *SIZES, COOL)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sft, "separate_end_of_turn", lambda model, contract: model)
        build(folder / "outputs", "stage=sample", *overrides)
    return Chain(folder / "outputs"), overrides


@pytest.mark.parametrize("tied", [True, False])
def test_the_new_row_is_that_of_the_end_of_sequence_unless_that_is_untrained_too(
    base: Path, tied: bool
) -> None:
    model = load_model(base)
    tokenizer = load_tokenizer(base)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rows = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    end, unused = tokenizer.convert_tokens_to_ids([TURNS[1], "<unused7>"])
    trained = 5
    for stops in ([unused, trained], [unused]):
        before = [weight.detach().clone() for weight in rows]
        separate_end_of_turn(model, Contract(tokenizer, [end, *stops]))
        for weight, old in zip(rows, before, strict=True):
            changed = (weight != old).any(dim=-1).nonzero().flatten().tolist()
            assert changed == [end]
            assert torch.equal(weight[end], old[trained]) is (trained in stops)
        for weight in rows:
            weight.data[end] = weight.data[unused]


def test_sft_says_that_the_end_of_turn_is_not_told_apart(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    manifest = store.manifest("sft", *overrides)
    figures = manifest["metrics"]["end_of_turn"]
    assert figures["token"] == TURNS[1]
    assert figures["before"]["alike"] >= UNUSED
    [warning] = [w for w in manifest["warnings"] if TURNS[1] in w]
    for key in ("sample.temperatures", "pairs.unfinished=drop", "sft.learning_rate"):
        assert key in warning


def test_sampling_says_that_few_end_and_how_many_at_each_temperature(
    chain: tuple[Chain, tuple[str, ...]],
) -> None:
    store, overrides = chain
    hot = (*overrides, HOT)
    build(store.root, "stage=sample", *hot)
    manifest = store.manifest("sample", *hot)
    metrics = manifest["metrics"]
    assert metrics["stop_rate"] == metrics["by_temperature"]["0.9"]["ended"] < 0.2
    assert any(w.startswith("sample.temperatures=[0.9]") for w in manifest["warnings"])
    as_advised = store.manifest("sample", *overrides)
    assert as_advised["metrics"]["by_temperature"]["0.4"]["ended"] > MOST
    assert not as_advised["warnings"]
