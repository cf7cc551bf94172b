"""Check that DPO trains the token ids that were sampled, and no end of turn that was not."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import reference
from stages.config.errors import UserError
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model
from stages.samplers.completions import complete
from stages.samplers.sampler import Completion, Decoding, Sampler
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, Pair, PairLogProbs, load, save
from stages.training.fit import Fit
from tests.helpers import Chain, build, settings
from tests.rows import work
from tests.stages.test_dpo import block, train

# Half of what is rejected is cut off, and half of it is cut up otherwise than it was drawn.
CUT = ("sample.max_new_tokens=4", "sample.temperatures=[0.7,2.0]")
STAGE_BY_ROLE = {"policy": "sft", "pairs": "pairs", "reference": "reference"}


@pytest.fixture(scope="module")
def sampled(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The tiny chain up to the reference, its candidates cut at four tokens. Do not write to it."""
    root = tmp_path_factory.mktemp("cut") / "outputs"
    shutil.copytree(built, root, symlinks=True)
    build(root, "stage=reference", *CUT)
    return Chain(root)


@pytest.fixture
def inputs(sampled: Chain, tmp_path: Path) -> dict[str, Path]:
    """Copy the inputs of DPO, so that a test may change them."""
    return {
        role: Path(shutil.copytree(sampled.folder(name, *CUT), tmp_path / name))
        for role, name in STAGE_BY_ROLE.items()
    }


@pytest.fixture
def contract(inputs: dict[str, Path]) -> Contract:
    return load_contract(inputs["policy"] / "model")


def pairs_of(inputs: dict[str, Path]) -> list[Pair]:
    return load(inputs["pairs"] / "pairs.parquet", Pair)


def scored_of(inputs: dict[str, Path]) -> dict[str, PairLogProbs]:
    return {p.id: p for p in load(inputs["reference"] / "logprobs.parquet", PairLogProbs)}


def rescored(
    inputs: dict[str, Path], folder: Path, change: Callable[[Pair], None]
) -> tuple[dict[str, Path], dict[str, Any], list[str]]:
    """Changed pairs and a reference of them, its figures and its warnings."""
    copies = {name: shutil.copytree(inputs[name], folder / name) for name in ("pairs", "reference")}
    pairs = pairs_of(inputs)
    for pair in pairs:
        change(pair)
    save(copies["pairs"] / "pairs.parquet", pairs, Pair)
    out = work(copies["reference"])
    cfg = settings("recipe=tiny", "precision=fp32").reference
    figures = reference.run(cfg, {"reference": inputs["policy"], "pairs": copies["pairs"]}, out)
    return {**inputs, **copies}, figures, out.warnings


def as_text(pair: Pair) -> None:
    """Remove the token ids and the finish reason of a pair."""
    pair.chosen_token_ids = pair.rejected_token_ids = None
    pair.rejected_finish_reason = "stop"


def test_every_pair_trains_the_ids_that_were_drawn(
    sampled: Chain,
    inputs: dict[str, Path],
    contract: Contract,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the sampler's candidates to what TRL's trainer puts through the model, token for token."""
    candidates = load(sampled.folder("sample", *CUT) / "candidates.parquet", Candidate)
    drawn = {(c.prompt_id, c.candidate_id): c for c in candidates}
    scored = scored_of(inputs)
    expected = set[tuple[tuple[int, ...], int]]()
    reasons = set[str]()
    for pair in pairs_of(inputs):
        prompt = contract.prompt(pair.prompt)
        reference = scored[pair.id]
        chosen = drawn[pair.prompt_id, pair.chosen_id]
        rejected = drawn[pair.prompt_id, pair.rejected_id]
        assert (reference.prompt_ids, reference.chosen_ids) == (prompt, chosen.token_ids)
        assert reference.rejected_ids == rejected.token_ids
        assert chosen.token_ids[-1] in contract.stop_ids
        if rejected.finish_reason == "length":
            assert not {*contract.stop_ids} & {*rejected.token_ids}
        reasons.add(rejected.finish_reason)
        if pair.split == "train":
            for side in (chosen, rejected):
                expected.add((tuple(prompt + side.token_ids), len(side.token_ids)))
    assert reasons == {"stop", "length"}

    seen = set[tuple[tuple[int, ...], int]]()

    def look(model: torch.nn.Module, args: Any, batch: dict[str, torch.Tensor]) -> None:
        if not model.training:
            return
        columns = (batch["input_ids"], batch["attention_mask"], batch["labels"])
        for ids, mask, labels in zip(*columns, strict=True):
            sequence = ids[mask.bool()].tolist()
            trained = labels[labels != -100].tolist()
            assert sequence[-len(trained) :] == trained
            seen.add((tuple(sequence), len(trained)))

    def watched(fit: Fit[Any, Any], *callbacks: Any) -> None:
        watching = fit.trainer.model.register_forward_pre_hook(look, with_kwargs=True)
        fit_train(fit, *callbacks)
        watching.remove()

    fit_train = Fit.train
    monkeypatch.setattr(Fit, "train", watched)
    _, metrics = train(block(batch_size=1, evaluations=1), inputs, tmp_path / "dpo")
    assert (metrics["pairs_cut"], metrics["pairs_dropped"]) == (0, {})
    assert seen == expected


@pytest.mark.extended
def test_a_rejected_completion_that_was_cut_off_does_not_teach_not_to_stop(
    inputs: dict[str, Path], contract: Contract, tmp_path: Path
) -> None:
    """Against the same pairs as text, each with an end of turn: that token's log-prob where it was never drawn."""
    scored = scored_of(inputs)
    cut = [scored[p.id] for p in pairs_of(inputs) if p.rejected_finish_reason == "length"]

    def stops(folder: Path) -> float:
        """Mean log-prob of the end of turn after a rejected completion that was cut off."""
        model = load_model(folder / "model")
        total = 0.0
        for s in cut:
            with torch.no_grad():
                logits = model(torch.tensor([s.prompt_ids + s.rejected_ids])).logits[0, -1]
            total += float(logits.log_softmax(-1)[contract.stop_ids[0]])
        return total / len(cut)

    text, metrics, warnings = rescored(inputs, tmp_path / "text", as_text)
    assert (metrics["retokenised"], warnings) == (2 * metrics["pairs"], [])
    cfg = block(learning_rate=5e-4, batch_size=4, epochs=4)
    train(cfg, inputs, tmp_path / "dpo")
    train(cfg, text, tmp_path / "dpo of text")
    with_end = stops(tmp_path / "dpo of text")
    assert stops(tmp_path / "dpo") > max(stops(inputs["policy"]), with_end)


def test_ids_of_another_tokenizer_or_text_are_tokenised_anew_counted_and_told(
    inputs: dict[str, Path], contract: Contract, tmp_path: Path
) -> None:
    foreign, edited = (pair.id for pair in pairs_of(inputs)[:2])

    def change(pair: Pair) -> None:
        if pair.id == foreign:
            pair.chosen_tokenizer = pair.rejected_tokenizer = "0" * 16
        elif pair.id == edited:
            pair.chosen[0]["content"] += " indeed"

    changed, metrics, [warning] = rescored(inputs, tmp_path / "changed", change)
    assert metrics["retokenised"] == 3
    assert warning.startswith("3 of ")
    before = scored_of(inputs)
    after = scored_of(changed)
    assert {i for i in before if before[i].chosen_ids != after[i].chosen_ids} <= {foreign, edited}
    assert contract.text(after[edited].chosen_ids).endswith(" indeed")


def test_a_reference_of_other_ids_than_the_pairs_have_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The same pairs as text: the reference has scored ends of turn that the pairs do not have."""
    text, _, _ = rescored(inputs, tmp_path / "text", as_text)
    first = pairs_of(inputs)[0].id
    with pytest.raises(UserError, match=rf"pairs\.parquet: pair {first}.*rebuild=reference"):
        train(block(), {**text, "pairs": inputs["pairs"]}, tmp_path / "dpo")


class FixedSampler(Sampler):
    """Draws what it is told."""

    name = "given"

    completion: Completion

    @classmethod
    def open(cls, source: Path, stop_ids: list[int], decoding: Decoding) -> "FixedSampler":
        return cls()

    def complete(self, requests: Any) -> Any:
        for request in requests:
            yield request, [self.completion]


@pytest.mark.parametrize(
    ("ids", "reason", "ends"),
    [
        ([5, 6, "end"], "stop", None),
        ([5, 6], "length", None),
        ([5, 6], "stop", 0),
        ([5, "end"], "length", 1),
        ([5, "end", 6, "end"], "stop", 2),
    ],
)
def test_a_sampler_of_ones_own_draws_under_the_models_tokenizer(
    ids: list[Any],
    reason: str,
    ends: int | None,
    sampled: Chain,
    contract: Contract,
    tmp_path: Path,
) -> None:
    """Its ids are trained as they are, so they must end a turn where it says that they do, and nowhere else."""
    token_ids = [contract.stop_ids[0] if i == "end" else i for i in ids]
    sampler = type("Fixed", (FixedSampler,), {"completion": Completion(token_ids, reason)})
    cfg = settings("recipe=tiny").sample
    out = work(tmp_path)
    prompts = load(sampled.folder("sample", *CUT) / "prompts.parquet", Example)[:1]
    model = sampled.folder("sft") / "model"
    decoding = Decoding([1.0], 4, cfg.precision, cfg.runtime)
    arguments = (prompts, contract, model, decoding, "sample", out, Dropped(out, "prompts"))
    if ends is not None:
        with pytest.raises(UserError, match=f"{ends} of {len(ids)} tokens end a turn"):
            complete(*arguments, sampler.open)
        return
    [completion] = complete(*arguments, sampler.open)
    assert (completion.token_ids, completion.tokenizer) == (token_ids, contract.digest)
    assert completion.text == contract.text(token_ids)
