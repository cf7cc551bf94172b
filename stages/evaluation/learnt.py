"""Held-out labels: the share in which the policy favours the better answer more than the model before training did.

It is a share of pairs or, where completions have single labels, of comparisons of a desirable one with an undesirable
one. It measures what was learnt of these preferences. Better answers are shown by checks or judges only."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.config.blocks.evaluation import Eval
from stages.config.choices import Precision
from stages.config.stage_table import DRAWING
from stages.evaluation.blind_rules import BlindPair, blind_figures
from stages.evaluation.claims import OVER_CONTROL
from stages.evaluation.diagnosis.effects import FAR_KL
from stages.evaluation.estimate import Means
from stages.evaluation.measures import FAVOURED, Measure
from stages.evaluation.outcomes import FEWEST_PAIRS, main_difference
from stages.evaluation.pair_groups import group_results, pair_margins
from stages.evaluation.results import (
    Behaviour,
    BlindRule,
    Divergence,
    Intervals,
    Learnt,
    PairGroups,
)
from stages.models import scoring
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.rendering import ContractError
from stages.store.dropped import Dropped
from stages.store.manifest import manifest_of
from stages.store.records import Pair, PairLogProbs, content_id, stream
from stages.store.single_completions import MismatchedPair, stream_pairs
from stages.store.thoughts import answer_behind
from stages.store.workspace import Progress, StageDir

TOO_FEW = "too few to say"
MOST_TRAINING = 2000  # training pairs by which the best blind rule is chosen
MORE_LOOPS = 0.02  # a rise of the share of answers that loop

Array = NDArray[np.float64]


def learnt_results(
    cfg: Eval, inputs: dict[str, Path], before: str, out: StageDir
) -> tuple[Learnt | None, list[Measure]]:
    """Return the shares of held-out pairs whose chosen answer a model favours; an equal score counts half. A model
    favours the chosen answer by its log-ratio to `before` (chance: one half), by summed log-prob, or by log-prob per
    token. `longer` is the share in which the chosen answer, without its thought, is the longer one. In the intervals,
    pairs of one prompt are one draw. Only models with SFT's template are scored, so the result is None without SFT.
    Without pairs, the rows are single completions, of which the desirable ones are compared with the undesirable ones.
    `moved`: how far training moved the answers. `blind`: the best rule that reads no answer, and what it leaves
    unexplained. `repeats`: how many pairs nearly equal a training pair; `others`: all figures of the other pairs, None
    if none repeats. `by`: groups of pairs, if `eval.by` asks for them. Also return what was measured of each model, by
    its log-ratio."""
    # objectives that draw train on all prompts, those of held-out pairs too
    roles = list[str]()
    for role in cfg.models:
        if role != "base" and manifest_of(inputs[role])["stage"] not in DRAWING:
            roles.append(role)
    if before != "sft" or "policy" not in roles:
        return None, []
    pairs = read_held_out(inputs, out)
    pairs, rows = in_own_forms({role: inputs[role] / "model" for role in roles}, pairs)
    labels = {pair.label for pair, _ in pairs if isinstance(pair, MismatchedPair)}
    if not pairs or len(labels) == 1:
        return None, []
    sums = {
        role: log_probs(cfg, role, inputs[role] / "model", of_role)
        for role, of_role in rows.items()
    }
    contract = load_contract(inputs["sft"] / "model")
    tokens = completion_tokens(pairs)
    lengths = answer_lengths(pairs, tokens, contract)
    scored = ScoredPairs(pairs, sums, tokens, lengths, before, cfg)
    figures = scored.results(training_pairs(inputs, contract))
    if figures and cfg.by is not None:
        figures = replace(figures, by=scored.groups(cfg.by, inputs))
    return figures, scored.measures()


@dataclass
class ScoredPairs:
    """Held-out pairs with their log-probs under each model, their tokens, and the `lengths` of the answers without
    thoughts: (pairs, 2), chosen and rejected."""

    pairs: list[tuple[Pair, PairLogProbs]]
    sums: dict[str, Array]
    tokens: Array
    lengths: Array
    before: str
    cfg: Eval

    def select(self, mask: NDArray[np.bool_]) -> "ScoredPairs":
        """Return some of the pairs."""
        sums = {role: of_role[mask] for role, of_role in self.sums.items()}
        pairs = [*compress(self.pairs, mask)]
        tokens, lengths = self.tokens[mask], self.lengths[mask]
        return replace(self, pairs=pairs, sums=sums, tokens=tokens, lengths=lengths)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """The labels of single completions; empty for pairs."""
        labels = [pair.label for pair, _ in self.pairs if isinstance(pair, MismatchedPair)]
        return np.array(labels, bool)

    @property
    def prompts(self) -> list[str]:
        return [pair.prompt_id for pair, _ in self.pairs]

    @property
    def ratios(self) -> dict[str, Array]:
        """The log-ratio of each model to the model before training, by role."""
        start = self.sums[self.before]
        return {role: sums - start for role, sums in self.sums.items() if role != self.before}

    def right(self, scores: Array) -> Array:
        """Return 1 for each pair whose chosen answer has the higher score, 0.5 where the scores are equal, and else 0;
        for single completions the placements."""
        if len(self.labels):
            return placements(scores[:, 0], self.labels)
        return (1 + np.sign(scores[:, 0] - scores[:, 1])) / 2

    def shares(self, scores: dict[str, Array]) -> Intervals:
        """Return each model's share of right pairs, and the differences of the models compared."""
        outcomes = np.stack([self.right(of_role) for of_role in scores.values()], 1)
        means = Means(outcomes, self.prompts, drawn=True)
        confidence = self.cfg.confidence
        row = {name: means.share(i, confidence) for i, name in enumerate(scores)}
        names = [*scores]
        main = main_difference(self.cfg.models)
        for name, other in ((main, self.before), (OVER_CONTROL, "control")):
            if {"policy", other} <= scores.keys():
                row[name] = means.difference(names.index("policy"), names.index(other), confidence)
        return row

    def moved(self) -> dict[str, float]:
        """Return by role how far training moved an answer's log-prob, up or down, in nats per token on average."""
        # a mismatched completion is no answer
        sides = 1 if len(self.labels) else 2
        tokens = self.tokens[:, :sides]
        return {
            role: float((np.abs(ratio[:, :sides]) / tokens).mean())
            for role, ratio in self.ratios.items()
        }

    def blind(self, training: Sequence[BlindPair]) -> BlindRule | None:
        """Return the figures of the best blind rule; None for single completions, which no rule compares."""
        if len(self.labels):
            return None
        held_out = blind_pairs(self.pairs, self.lengths)
        gained = {role: self.right(ratio) for role, ratio in self.ratios.items()}
        return blind_figures(training, held_out, self.prompts, gained, self.cfg.confidence)

    def results(self, training: Sequence[BlindPair]) -> Learnt | None:
        """Return all figures and, if some pairs repeat a training pair, those of the others."""
        figures = self.figures(training)
        repeats = np.array([pair.repeats for pair, _ in self.pairs], bool)
        if figures is None or not repeats.any():
            return figures
        others = self.select(~repeats).figures(training)
        return replace(figures, repeats=int(repeats.sum()), others=others)

    def figures(self, training: Sequence[BlindPair]) -> Learnt | None:
        """Return all figures; None without pairs, or if single completions are all of one label."""
        if not self.pairs or (len(self.labels) and self.labels.all() == self.labels.any()):
            return None
        noun = "held-out pairs"
        if len(self.labels):
            noun = "held-out completions, each desirable one with each other one"
        return Learnt(
            pairs=len(self.pairs),
            of=f"{len(self.pairs):,} {noun}",
            prompts=len({*self.prompts}),
            ratio=self.shares(self.ratios),
            sum=self.shares(self.sums),
            per_token=self.shares({role: of / self.tokens for role, of in self.sums.items()}),
            longer=self.shares({"longer": self.lengths})["longer"],
            note=TOO_FEW if len(self.pairs) < FEWEST_PAIRS else "",
            moved=self.moved(),
            blind=self.blind(training),
        )

    def groups(self, by: Sequence[str], inputs: dict[str, Path]) -> PairGroups | None:
        """Return the figures of the policy by group of pairs; None for single completions. `by`: the columns of
        `eval.by`. Raise UserError if a column does not divide the pairs."""
        if len(self.labels):
            return None
        margins = pair_margins(self.pairs, self.ratios["policy"], self.tokens)
        return group_results(by, inputs, self.pairs, margins, self.cfg.confidence)

    def measures(self) -> list[Measure]:
        """Return what was measured of each model, by its log-ratio. The model before training favours no answer."""
        units = [content_id(pair.prompt_id, pair.chosen, pair.rejected) for pair, _ in self.pairs]
        unmoved = {self.before: np.zeros((len(self.pairs), 2))}
        measured = list[Measure]()
        for role, ratio in (unmoved | self.ratios).items():
            values = self.right(ratio).tolist()
            rows = zip(units, self.prompts, values, strict=True)
            measured += [Measure(FAVOURED, *row, role) for row in rows]
        return measured


def training_pairs(inputs: dict[str, Path], contract: Contract) -> list[BlindPair]:
    """Return what blind rules know of training pairs: of MOST_TRAINING at random. Those that the template cannot render
    are left out."""
    if "pairs" not in inputs:
        return []
    pairs = stream(inputs["pairs"] / "pairs.parquet", Pair)
    training = (pair for pair in pairs if pair.split == "train")
    drawn = nsmallest(MOST_TRAINING, training, key=random_order)
    by_pair = [(pair, in_form(pair, contract)) for pair in drawn]
    rendered = [(pair, ids) for pair, ids in by_pair if ids is not None]
    lengths = answer_lengths(rendered, completion_tokens(rendered), contract)
    return blind_pairs(rendered, lengths)


def blind_pairs(pairs: Sequence[tuple[Pair, PairLogProbs]], lengths: Array) -> list[BlindPair]:
    """Return what blind rules know of pairs. `lengths`: of the answers, (pairs, 2)."""
    return [
        BlindPair.of(pair, of_pair)
        for (pair, _), of_pair in zip(pairs, lengths.tolist(), strict=True)
    ]


def random_order(pair: Pair) -> str:
    """Return a sort key that does not depend on the order of the rows."""
    return content_id("blind", pair.id)


def completion_tokens(pairs: Sequence[tuple[Pair, PairLogProbs]]) -> Array:
    """Return the numbers of scored tokens of chosen and rejected: (pairs, 2)."""
    counts = np.zeros((len(pairs), 2))
    for i, (_, ids) in enumerate(pairs):
        sides = ((ids.chosen_ids, ids.chosen_mask), (ids.rejected_ids, ids.rejected_mask))
        for side, (tokens, mask) in enumerate(sides):
            counts[i, side] = len(tokens) - (mask or []).count(False)
    return counts


def read_held_out(inputs: dict[str, Path], out: StageDir) -> list[tuple[Pair, PairLogProbs]]:
    """Read the pairs held out from training, or the completions with single labels, each beside its mismatched one. Those that
    SFT's template cannot render or that exceed SFT's context are left out, with a warning."""
    sft_contract = load_contract(inputs["sft"] / "model")
    longest = read_context_length(inputs["sft"] / "model")
    dropped = Dropped(out, "held-out pairs")
    held_out_pairs = (pair for pair in stream_pairs(inputs) if pair.split == "validation")
    pairs = [
        (p, ids)
        for p, ids in scoring.tokenize_pairs(held_out_pairs, sft_contract, longest, dropped)
    ]
    dropped.settle(len(pairs), remaining=1)  # no pair left means no result, not an error
    return pairs


def in_own_forms(
    folders: dict[str, Path], pairs: Sequence[tuple[Pair, PairLogProbs]]
) -> tuple[list[tuple[Pair, PairLogProbs]], dict[str, list[PairLogProbs]]]:
    """Return the pairs that every model's template can render, and by role each of them as that model reads it: one
    that was trained elsewhere has a template of its own."""
    own = load_contract(folders["sft"]).digest
    rows = dict[str, list[PairLogProbs | None]]()
    for role, folder in folders.items():
        contract = load_contract(folder)
        is_own = contract.digest == own
        rows[role] = [ids if is_own else in_form(pair, contract) for pair, ids in pairs]
    rendered = [all(of_pair) for of_pair in zip(*rows.values(), strict=True)]
    shared = {role: [*filter(None, compress(of_role, rendered))] for role, of_role in rows.items()}
    return [*compress(pairs, rendered)], shared


def in_form(pair: Pair, contract: Contract) -> PairLogProbs | None:
    with suppress(ContractError):
        return scoring.tokenize_pair(pair, contract)
    return None


def answer_lengths(
    pairs: Sequence[tuple[Pair, PairLogProbs]], tokens: Array, contract: Contract
) -> Array:
    """Return the lengths of chosen and rejected: (pairs, 2). Those with a thought have the `tokens` behind it."""
    lengths = tokens.copy()
    for i, (pair, _) in enumerate(pairs):
        for side, turns in enumerate((pair.chosen, pair.rejected)):
            answer = answer_behind(turns[-1]["content"])
            if len(turns) == 1 and answer != turns[-1]["content"]:
                lengths[i, side] = contract.length(answer, ended=True)
    return lengths


def log_probs(cfg: Eval, role: str, folder: Path, pairs: list[PairLogProbs]) -> Array:
    """Sum the log-probs of chosen and rejected under a model: (pairs, 2). All models get the same batches."""
    sums = np.zeros((len(pairs), 2))
    scored = token_log_probs(
        cfg.runtime.device, cfg.precision, f"held-out pairs {role}", folder, pairs
    )
    for i, chosen, rejected in scored:
        sums[i] = sum(chosen), sum(rejected)
    return sums


def token_log_probs(
    device: str, precision: Precision, title: str, folder: Path, pairs: list[PairLogProbs]
) -> Iterator[tuple[int, list[float], list[float]]]:
    """Yield each pair's place and the log-probs of its chosen and its rejected tokens under a model. `title`: of the
    progress."""
    model = scoring.install_scoring(load_model(folder, device=resolve_device(device)))
    pad = load_contract(folder).tokenizer.pad_token_id
    tokens = [2 * (len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids))) for p in pairs]
    with (
        Progress(len(pairs), title, "pair") as progress,
        scoring.round_weights_once(model.device),
    ):
        for batch in scoring.batches_by_length(tokens, None, model.device):
            scored = scoring.pair_log_probs(model, [pairs[i] for i in batch], pad, precision)
            for i, (chosen, rejected) in zip(batch, scored, strict=True):
                yield i, chosen, rejected
            progress.update(len(batch))


def placements(scores: Array, desirable: NDArray[np.bool_]) -> Array:
    """Return values whose mean is the share of comparisons that a desirable completion wins, and whose spread is that
    of the share (DeLong 1988, Biometrics 44:837): the share of the other kind that each completion beats, or that
    beats it, around the mean, in proportion to its kind's size."""
    wins = (1 + np.sign(scores[desirable][:, None] - scores[~desirable])) / 2
    values, share = np.empty(len(scores)), wins.mean()
    values[desirable] = share + (wins.mean(1) - share) * len(scores) / len(wins)
    values[~desirable] = share + (wins.mean(0) - share) * len(scores) / wins.shape[1]
    return values


def cautions(
    models: dict[str, str],
    first: str,
    behaviour: Behaviour,
    endings: str,
    kl: dict[str, Divergence],
) -> str:
    """Return a clause that names what became worse, else ''. It names fewer answers that end, more answers that loop,
    and a policy that moved far from the model before it, whose role is `first`."""
    worse = list[str]()
    if endings:
        worse.append(endings.removeprefix(", and "))
    loops = behaviour.loops
    if loops and loops["policy"] - loops[first] > MORE_LOOPS:
        worse.append(
            f"repeats itself in a loop in more answers: {loops[first]:.1%} → {loops['policy']:.1%}"
        )
    if "policy" in kl and kl["policy"].per_token > FAR_KL:
        worse.append(f"is far from {models[first]}: {kl['policy'].per_token:.2g} nats per token")
    return f"; but it {', and '.join(worse)}" if worse else ""
