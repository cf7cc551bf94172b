"""Check that DPO trains the token ids that were sampled, and no end of turn that was not."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import reference
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.training import DPO
from stages.config.choices import Forward
from stages.config.errors import UserError
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model
from stages.models.rendering import ContractError
from stages.models.scoring import tokenize_pair
from stages.objectives.dpo import read_rows
from stages.samplers.completions import complete
from stages.samplers.sampler import Completion, Decoding, Sampler
from stages.store.dropped import Dropped
from stages.store.records import Candidate, Example, Pair, PairLogProbs, load, save
from stages.training import fit
from tests.helpers import Chain, build, settings
from tests.rows import work
from tests.stages.test_dpo import block, distance, train

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
    drawn = {
        (c.prompt_id, c.candidate_id): c
        for c in load(sampled.folder("sample", *CUT) / "candidates.parquet", Candidate)
    }
    expected: dict[str, tuple[tuple[tuple[int, ...], int], ...]] = {}
    cut = 0
    for pair in pairs_of(inputs):
        prompt = contract.prompt(pair.prompt)
        chosen, rejected = (drawn[pair.prompt_id, i] for i in (pair.chosen_id, pair.rejected_id))
        expected[pair.id] = tuple(
            (tuple(prompt + c.token_ids), len(c.token_ids)) for c in (chosen, rejected)
        )
        assert chosen.finish_reason == "stop"
        assert chosen.token_ids[-1] in contract.stop_ids
        if rejected.finish_reason == "length":
            cut += 1
            assert not {*contract.stop_ids} & {*rejected.token_ids}
        scored = scored_of(inputs)[pair.id]
        assert (scored.prompt_ids, scored.chosen_ids) == (prompt, chosen.token_ids)
        assert scored.rejected_ids == rejected.token_ids
        assert len(scored.rejected_logps) == len(rejected.token_ids)
    assert 0 < cut < len(expected), "some were cut off, and some were not"

    seen = set[tuple[tuple[int, ...], int]]()

    def look(model: torch.nn.Module, args: Any, batch: dict[str, torch.Tensor]) -> None:
        if not model.training:
            return
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            sequence, trained = ids[mask.bool()].tolist(), labels[labels != -100].tolist()
            assert sequence[-len(trained) :] == trained
            seen.add((tuple(sequence), len(trained)))

    def watched(trainer: Any, *rest: Any) -> None:
        watching = trainer.model.register_forward_pre_hook(look, with_kwargs=True)
        fit_train(trainer, *rest)
        watching.remove()

    fit_train = fit.train_with_callbacks
    monkeypatch.setattr(fit, "train_with_callbacks", watched)
    _, metrics = train(block(batch_size=1, evaluations=1), inputs, tmp_path / "dpo")
    assert (metrics["pairs_cut"], metrics["pairs_dropped"]) == (0, {})
    assert seen == {
        side for pair in pairs_of(inputs) if pair.split == "train" for side in expected[pair.id]
    }


@pytest.mark.extended
def test_a_rejected_completion_that_was_cut_off_does_not_teach_not_to_stop(
    inputs: dict[str, Path], contract: Contract, tmp_path: Path
) -> None:
    """Against the same pairs as text, each with an end of turn: that token's log-prob where it was never drawn."""
    scored = scored_of(inputs)
    cut = [scored[p.id] for p in pairs_of(inputs) if p.rejected_finish_reason == "length"]

    def stops(folder: Path) -> float:
        """Mean log-prob of the end of turn after a rejected completion that was cut off."""
        model, total = load_model(folder / "model"), 0.0
        for s in cut:
            with torch.no_grad():
                logits = model(torch.tensor([s.prompt_ids + s.rejected_ids])).logits[0, -1]
            total += float(logits.log_softmax(-1)[contract.stop_ids[0]])
        return total / len(cut)

    text, figures, warnings = rescored(inputs, tmp_path / "text", as_text)
    assert (figures["retokenised"], warnings) == (2 * figures["pairs"], []), (
        "all of them, and no reason for alarm"
    )
    assert all(s.rejected_ids[-1] == contract.stop_ids[0] for s in scored_of(text).values()), (
        "as it was before"
    )
    cfg = block(learning_rate=5e-4, batch_size=4, epochs=4)
    train(cfg, inputs, tmp_path / "dpo")
    train(cfg, text, tmp_path / "dpo of text")
    before, after, added = (
        stops(f) for f in (inputs["policy"], tmp_path / "dpo", tmp_path / "dpo of text")
    )
    assert after > max(before, added), (
        f"{before:.2f} nats before, {after:.2f} as drawn, {added:.2f} with an end"
    )


@pytest.fixture(scope="module")
def as_ever(
    sampled: Chain, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the metrics of DPO on these pairs, in its usual form."""
    inputs = {role: sampled.folder(name, *CUT) for role, name in STAGE_BY_ROLE.items()}
    return train(block(), inputs, tmp_path_factory.mktemp("as-ever") / "dpo")


@pytest.mark.extended
@pytest.mark.parametrize(
    "changes", [{"forward": Forward.padded}, {"trainer": DPOArguments(ld_alpha=0.5)}, {"micro": 1}]
)
def test_completions_without_an_end_train_the_same_in_every_form(
    changes: dict[str, Any],
    as_ever: tuple[dict[str, torch.Tensor], dict[str, Any]],
    inputs: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The start is checked in each; equal weights to 1e-5 in fp32 where the loss is the same, else another model."""
    weights, metrics = as_ever
    other, other_metrics = train(block(**changes), inputs, tmp_path / "other")
    assert metrics["step_0_gap"] < 1e-5
    assert other_metrics["step_0_gap"] < 1e-5
    assert other_metrics["step_0_loss"] == pytest.approx(metrics["step_0_loss"], abs=1e-5)
    assert (distance(weights, other) < 1e-5) == ("trainer" not in changes)


def test_what_fits_is_measured_without_an_end_that_is_not_there(
    inputs: dict[str, Path], contract: Contract, tmp_path: Path
) -> None:
    scored = scored_of(inputs)
    length = {
        i: len(s.prompt_ids) + max(len(s.chosen_ids), len(s.rejected_ids))
        for i, s in scored.items()
    }
    longest = max(
        p.id
        for p in pairs_of(inputs)
        if p.rejected_finish_reason == "length" and len(p.rejected_token_ids) == 4
    )
    cfg: DPO = block(max_length=length[longest], max_dropped=1.0)
    rows = read_rows(inputs, contract, cfg, work(tmp_path))
    assert longest in {*rows.train.ids, *rows.validation.ids}


def test_ids_of_another_tokenizer_or_text_are_tokenised_anew_counted_and_told(
    inputs: dict[str, Path], contract: Contract, tmp_path: Path
) -> None:
    pairs = pairs_of(inputs)
    foreign, edited = pairs[0].id, pairs[1].id

    def change(pair: Pair) -> None:
        if pair.id == foreign:
            pair.chosen_tokenizer = pair.rejected_tokenizer = "0" * 16
        elif pair.id == edited:
            pair.chosen[0]["content"] += " indeed"

    rescored_pairs, figures, [warning] = rescored(inputs, tmp_path / "changed", change)
    assert figures["retokenised"] == 3
    assert warning.startswith(f"3 of {2 * len(pairs)} completions have token ids")
    before, after = scored_of(inputs), scored_of(rescored_pairs)
    assert {i for i in before if before[i].chosen_ids != after[i].chosen_ids} <= {foreign, edited}
    assert contract.text(after[edited].chosen_ids).endswith(" indeed")


def test_a_reference_of_other_ids_than_the_pairs_have_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The same pairs as text: the reference has scored ends of turn that the pairs do not have."""
    text, _, _ = rescored(inputs, tmp_path / "text", as_text)
    with pytest.raises(UserError, match=r"scored other .*rebuild=reference"):
        train(block(), {**text, "pairs": inputs["pairs"]}, tmp_path / "dpo")


def spelt(contract: Contract) -> tuple[list[int], str]:
    """A word that the tokenizer knows as one token, drawn as two others that spell it; and the word."""
    vocabulary = contract.tokenizer.get_vocab()
    for word, token in sorted(vocabulary.items(), key=lambda item: item[1]):
        for i in range(1, len(word)):
            halves = [vocabulary.get(word[:i]), vocabulary.get(word[i:])]
            text = contract.tokenizer.decode([token])
            if (
                None not in halves
                and text.isalpha()
                and contract.tokenizer(text).input_ids == [token]
            ):
                return [*halves, contract.stop_ids[0]], text
    raise AssertionError("no token of this vocabulary is made of two others")


def test_a_completion_that_text_would_cut_up_otherwise_keeps_its_tokens(contract: Contract) -> None:
    ids, text = spelt(contract)
    ask, answer = [{"role": "user", "content": "Yes?"}], [{"role": "assistant", "content": text}]
    assert contract.text(ids) == text
    _, anew = contract.completion(ask, answer)
    assert len(anew) == 2 < len(ids) == 3
    pair = Pair("a", "", ask, answer, answer, None, "", "", "", "", "train")
    with_ids = replace(pair, chosen_token_ids=ids, chosen_tokenizer=contract.digest)
    cut_off = replace(
        with_ids,
        rejected_token_ids=ids[:-1],
        rejected_tokenizer=contract.digest,
        rejected_finish_reason="length",
    )
    tokens = tokenize_pair(cut_off, contract)
    assert (tokens.prompt_ids, tokens.chosen_ids, tokens.rejected_ids) == (
        contract.prompt(ask),
        ids,
        ids[:-1],
    )
    tokens = tokenize_pair(with_ids, contract)
    assert (tokens.chosen_ids, tokens.rejected_ids) == (ids, anew)
    tokens = tokenize_pair(replace(pair, rejected_finish_reason="length"), contract)
    assert (tokens.chosen_ids, tokens.rejected_ids) == (anew, anew[:-1])
    silent = replace(
        pair, rejected=[{"role": "assistant", "content": ""}], rejected_finish_reason="length"
    )
    with pytest.raises(ContractError, match="no token"):
        tokenize_pair(silent, contract)


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
    ("ids", "reason", "pattern"),
    [
        ([5, 6, "end"], "stop", ""),
        ([5, 6], "length", ""),
        ([5, 6], "stop", "finish_reason=stop, and 0 of its 2 tokens end a turn"),
        ([5, "end"], "length", "finish_reason=length, and 1 of its 2 tokens end a turn"),
        ([5, "end", 6, "end"], "stop", "finish_reason=stop, and 2 of its 4 tokens end a turn"),
        ([], "stop", "finish_reason=stop, and 0 of its 0 tokens end a turn"),
    ],
)
def test_a_sampler_of_ones_own_draws_under_the_models_tokenizer(
    ids: list[Any], reason: str, pattern: str, sampled: Chain, contract: Contract, tmp_path: Path
) -> None:
    """Its ids are trained as they are, so they must end a turn where it says that they do, and nowhere else."""
    drawn = Completion([contract.stop_ids[0] if i == "end" else i for i in ids], reason)
    told_so = type("Told", (FixedSampler,), {"completion": drawn})
    cfg = settings("recipe=tiny").sample
    prompts = load(sampled.folder("sample", *CUT) / "prompts.parquet", Example)[:1]

    def completed() -> list[Candidate]:
        out = work(tmp_path)
        decoding = Decoding([1.0], 4, cfg.precision, cfg.runtime)
        model = sampled.folder("sft") / "model"
        return complete(
            prompts, contract, model, decoding, "sample", out, Dropped(out, "prompts"), told_so.open
        )

    if pattern:
        with pytest.raises(UserError, match=pattern):
            completed()
        return
    [completion] = completed()
    assert (completion.token_ids, completion.tokenizer, completion.text) == (
        drawn.token_ids,
        contract.digest,
        contract.text(drawn.token_ids),
    )
