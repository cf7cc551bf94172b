"""Stage `pairs`: make pairs of chosen and rejected completions from judgements, and count prompts without a pair."""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from operator import is_not
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import ControlPairs, Strategy
from stages.config.errors import UserError
from stages.curation.answer_rules import find_broken_rule, is_within, logprob_limits
from stages.curation.near_equal import SplitReport, split_rows
from stages.evaluation.pair_accuracy import PairAudit, accuracy_clause
from stages.pairing import admission
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import rank_contrasts
from stages.pairing.strategies import BY_STRENGTH, StrategyResult, select_contrasts, table
from stages.store import records
from stages.store.judged_pool import TokenCount, read_judged_prompts
from stages.store.licences import Provenance
from stages.store.records import Candidate, Example, Judgement, Pair, Records
from stages.store.text_units import transcript
from stages.store.truncation import ending_advice, resolve_unfinished, share_ended
from stages.store.workspace import StageDir


def run(cfg: Pairs, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `pairs.parquet`. Raise UserError if no prompt gives a pair."""
    if cfg.control:
        return publish_control(cfg, inputs, out)
    pairing = Pairing(cfg, inputs["judged"])
    file = out / "pairs.parquet"
    records.save(file, pairing.pairs(), Pair)
    if not pairing.result.pairs:
        raise pairing.no_pair_error()
    prompts = Records(inputs["judged"] / "prompts.parquet", Example)
    split = split_rows(file, Pair, prompts, cfg.validation_fraction)
    metrics = pairing.metrics(Records(file, Pair), split)
    pairing.report(metrics, out)
    split.report(f"{cfg.key}.validation_fraction", out)
    return metrics


@dataclass
class JudgedPrompt:
    """A prompt with the contrasts that strategies choose from: judged ones (False), or those of a ranking (True).
    Candidates in `unsound_ids` must not be chosen. `places`: of candidates in the pool, by id."""

    prompt: Example
    places: dict[str, int]
    contrasts_by_ranked: dict[bool, list[Contrast]]
    unsound_ids: set[str]


class Pairing:
    """The pairs of a judged pool, and their counts. Every strategy chooses its pairs, so that a user can compare them;
    those of the configured strategy are published. `part_early` counts pairs of several turns, and
    `thought_on_one_side` pairs in which only chosen or only rejected has a thought."""

    def __init__(self, cfg: Pairs, pool: Path):
        self.pool = pool
        self.candidates = Records(pool / "candidates.parquet", Candidate)
        self.candidates_ended = share_ended(pool)
        unfinished = resolve_unfinished(cfg.unfinished, self.candidates_ended)
        self.cfg = replace(cfg, unfinished=unfinished)
        self.uses_ranking = cfg.strategy in BY_STRENGTH
        self.admissions_by_ranked = self.make_admissions_by_ranked()
        self.admission = self.admissions_by_ranked[self.uses_ranking]
        self.results = {strategy: StrategyResult(strategy, self.cfg) for strategy in Strategy}
        self.result = self.results[cfg.strategy]
        self.audit = PairAudit(pool) if (pool / "audit.jsonl").exists() else None
        self.prompts = 0
        self.part_early = 0
        self.thought_on_one_side = 0
        self.provenance = Provenance()

    def judged_prompts(self) -> Iterator[JudgedPrompt]:
        """Read the prompts of the pool."""
        limits = None
        if self.cfg.quality:
            limits = logprob_limits(Records(self.pool / "candidates.parquet", TokenCount))
        for prompt, candidates, judgements in read_judged_prompts(self.pool):
            unsound_ids = set[str]()
            if limits:
                for candidate in candidates:
                    if find_broken_rule(prompt, candidate) or not is_within(candidate, limits):
                        unsound_ids.add(candidate.candidate_id)
            compared = comparisons(judgements, {c.candidate_id: c for c in candidates})
            contrasts_by_ranked = {False: compared, True: rank_contrasts(compared)}
            places = {each.candidate_id: place for place, each in enumerate(candidates)}
            yield JudgedPrompt(prompt, places, contrasts_by_ranked, unsound_ids)

    def make_admissions_by_ranked(self) -> dict[bool, admission.Admission]:
        """Return the filters of judged contrasts (False) and of those of a ranking (True). The quantiles of
        `pairs.margin_quantiles` are over the margins of all prompts."""
        ways_out = self.ways_out()
        admissions = {ranked: admission.Admission(self.cfg, ways_out) for ranked in (False, True)}
        if not self.cfg.margin_quantiles:
            return admissions
        margins_of_all_prompts = {False: array("d"), True: array("d")}
        for judged in self.judged_prompts():
            for ranked, margins in margins_of_all_prompts.items():
                usable, _ = admissions[ranked].admit(
                    judged.contrasts_by_ranked[ranked], judged.unsound_ids
                )
                margins.extend(contrast.distance for contrast in usable)
        for ranked, margins in margins_of_all_prompts.items():
            limits = admission.quantile_margins(margins, self.cfg.margin_quantiles)
            admissions[ranked] = admission.Admission(self.cfg, ways_out, limits)
        return admissions

    def ways_out(self) -> admission.WaysOut:
        """Return the advice to get candidates that make pairs. It depends on where these candidates come from."""
        samplers = {*self.candidates.column("sampler")}
        advice = admission.DRAW
        if len(samplers) == 1:
            advice = admission.GIVE.get(samplers.pop(), admission.DRAW)
        ending = ending_advice(self.candidates_ended)
        if ending and advice == admission.DRAW:
            return admission.WaysOut(admission.DRAW, ending, ending, ending)
        return admission.WaysOut(advice, advice)

    def pairs(self) -> Iterator[Pair]:
        """Yield the pairs of the configured strategy prompt by prompt."""
        stored = records.stream(self.pool / "judgements.parquet", Judgement)
        labeler = next((judgement.labeler for judgement in stored), "")
        for judged in self.judged_prompts():
            self.prompts += 1
            for contrast in self.choose_with_every_strategy(judged):
                pair = make_pair(judged, contrast, labeler, self.cfg.strategy)
                has_thought = contrast.better.has_thought
                self.thought_on_one_side += has_thought != contrast.worse.has_thought
                self.part_early += pair.parts_early
                self.provenance.count(judged.prompt)
                yield pair

    def choose_with_every_strategy(self, judged: JudgedPrompt) -> list[Contrast]:
        """Return the contrasts that the configured strategy chooses, after all strategies have chosen."""
        admitted_by_ranked = {
            ranked: admission_of_kind.admit(judged.contrasts_by_ranked[ranked], judged.unsound_ids)
            for ranked, admission_of_kind in self.admissions_by_ranked.items()
        }
        chosen = dict[Strategy, list[Contrast]]()
        for strategy, result in self.results.items():
            contrasts, reason = admitted_by_ranked[strategy in BY_STRENGTH]
            chosen[strategy] = result.take(judged.prompt, contrasts, reason)
        if self.audit:
            compared = chain.from_iterable(sides_of(judged.contrasts_by_ranked[False]))
            by_strategy = {strategy: sides_of(contrasts) for strategy, contrasts in chosen.items()}
            self.audit.look_up(judged.prompt, compared, by_strategy)
        return chosen[self.cfg.strategy]

    @property
    def reasons_without_pair(self) -> str:
        """The reasons for which prompts have no pair, the most frequent first, with their numbers of prompts."""
        frequent_first = self.result.prompts_without_pair.most_common()
        return "; ".join(f"{count}: {reason}" for reason, count in frequent_first)

    def no_pair_error(self) -> UserError:
        """Return the error for a pool without a pair, with advice against the most frequent reason."""
        way_out = ""
        if self.reasons_without_pair:
            [(reason, _)] = self.result.prompts_without_pair.most_common(1)
            way_out = self.admission.advice[reason]
            if reason == admission.TIES:
                stored = records.stream(self.pool / "judgements.parquet", Judgement)
                way_out = admission.order_message(stored) or way_out
            way_out = f" {way_out}."
        return UserError(
            f"{self.cfg.key}: no pair could be made from {self.prompts} prompts ({self.reasons_without_pair}).{way_out}"
        )

    def report(self, metrics: dict[str, Any], out: StageDir) -> None:
        """Show what each strategy makes of the judgements, and warn of judgements that the user gave for nothing."""
        # a reward model does not read thoughts
        if self.thought_on_one_side and self.cfg.key == "pairs":
            out.warn(
                f"{self.thought_on_one_side} of {self.result.pairs} pairs have a thought on one side only. "
                "label.reasoning=strip leaves out the thoughts of a file."
            )
        user_gave_candidates = self.admission.ways_out.texts in admission.GIVE.values()
        if user_gave_candidates:
            for line in self.admission.filter_messages():
                out.warn(line)
            lost = ", ".join(f"{count} {name}" for name, count in metrics["left_out"].items())
            out.inform(
                f"{self.result.pairs} of {metrics['comparisons']} comparisons became pairs. Left out: {lost or 'none'}."
            )
        strategies = table(metrics["strategies"], self.cfg.strategy)
        out.inform(f"Pairs of each strategy (*: the one in use):\n{strategies}")

    def metrics(self, published: Records[Pair], split: SplitReport) -> dict[str, Any]:
        """Return the counts of the published pairs, and what became of the other comparisons."""
        refused = self.admission.refused
        left_out = self.result.left_out.copy()
        for reason, count in refused.items():
            left_out[self.admission.refused_names[reason]] += count
        left_out = +left_out
        strategies = dict[str, dict[str, Any]]()
        for strategy, result in self.results.items():
            strategies[str(strategy)] = result.figures()
            if self.audit:
                strategies[strategy]["accuracy"] = self.audit.figures(strategy)
        used = strategies[self.cfg.strategy]
        optional = {
            "policies": self.counts_by_policy(published),
            "expected_accuracy": used.get("accuracy"),
            "part_early": self.part_early,
            "thought_on_one_side": self.thought_on_one_side,
        }
        held_out = split.held_out_clause
        summary = f"{self.result.pairs} pairs ({held_out}) from {self.prompts} prompts"
        if self.reasons_without_pair:
            summary += f"; no pair from {self.reasons_without_pair}"
        if optional["expected_accuracy"]:
            summary += f"; {accuracy_clause(used['accuracy'])}"
        return {
            "pairs": self.result.pairs,
            **split.figures,
            "prompts": self.prompts,
            "prompts_without_pair": dict(self.result.prompts_without_pair),
            "unfinished": {
                "kept as rejected": [*published.column("rejected_finish_reason")].count("length"),
                "dropped as rejected": refused[admission.WORSE_UNFINISHED],
                "refused as chosen": refused[admission.BETTER_UNFINISHED],
            },
            "unfinished_rule": str(self.cfg.unfinished),
            "candidates_ended": self.candidates_ended,
            "comparisons": self.result.pairs + left_out.total(),
            "left_out": dict(left_out.most_common()),
            "chosen_longer_by": used["chosen_longer_by"],
            "strategies": strategies,
            **{name: figure for name, figure in optional.items() if figure},
            **self.provenance.metrics(),
            "summary": summary,
        }

    def counts_by_policy(self, published: Records[Pair]) -> dict[str, dict[str, int]]:
        """Return the numbers of candidates, chosen and rejected ones by policy; nothing for a single policy."""
        candidates = Counter(self.candidates.column("policy"))
        if len(candidates) < 2:
            return {}
        chosen = Counter(published.column("chosen_policy"))
        rejected = Counter(published.column("rejected_policy"))
        return {
            policy: {"candidates": count, "chosen": chosen[policy], "rejected": rejected[policy]}
            for policy, count in candidates.items()
        }


def publish_control(cfg: Pairs, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish a control's pairs, of the same pool and prompts as the run's `pairs`, and as many."""
    run_pairs = records.load(inputs["pairs"] / "pairs.parquet", Pair)
    if cfg.control is ControlPairs.coin:
        pairs = [turn_by_coin(pair, cfg.seed) for pair in run_pairs]
        turned = sum(map(is_not, pairs, run_pairs))
        how = f"{turned} of them turned around by a coin"
    else:
        pairs = draw_random_pairs(Pairing(cfg, inputs["judged"]), run_pairs)
        how = "at random"
        if {pair.id for pair in pairs} == {pair.id for pair in run_pairs}:
            out.warn(
                "control_pairs=random: no prompt has another valid pair, so these are the run's. Set it to coin."
            )
    records.save(out / "pairs.parquet", pairs, Pair)
    return {
        "pairs": len(pairs),
        "held_out": sum(pair.split == "validation" for pair in pairs),
        "summary": f"{len(pairs)} pairs ({how}), as many as the run's",
    }


def draw_random_pairs(pairing: Pairing, run_pairs: list[Pair]) -> list[Pair]:
    """Return as many random pairs of each prompt as the run has, on the run's side of the split."""
    counts = Counter(pair.prompt_id for pair in run_pairs)
    side_of_prompt = {pair.prompt_id: pair.split for pair in run_pairs}
    pairs = list[Pair]()
    for judged in pairing.judged_prompts():
        prompt = judged.prompt
        if not counts[prompt.id]:
            continue
        cfg = replace(pairing.cfg, strategy=Strategy.random, max_per_prompt=counts[prompt.id])
        usable, _ = pairing.admission.admit(
            judged.contrasts_by_ranked[pairing.uses_ranking], judged.unsound_ids
        )
        for contrast in select_contrasts(usable, Strategy.random, cfg, prompt.id):
            pair = make_pair(judged, contrast, run_pairs[0].labeler, cfg.strategy)
            pairs.append(replace(pair, split=side_of_prompt[prompt.id]))
    return pairs


def turn_by_coin(pair: Pair, seed: int) -> Pair:
    """Return the pair, turned around by a coin that its content and the seed decide."""
    heads = records.content_id(seed, pair.id) < "8"
    return turn_around(pair) if heads else pair


def turn_around(pair: Pair) -> Pair:
    """Return the pair with its sides exchanged, or as it is if its rejected one is cut off: a chosen one has ended."""
    rejected_is_cut_off = pair.rejected_finish_reason != "stop"
    if rejected_is_cut_off:
        return pair
    return replace(
        pair,
        id=records.content_id(pair.prompt_id, transcript(pair.rejected), transcript(pair.chosen)),
        margin=None if pair.margin is None else -pair.margin,
        chosen=pair.rejected,
        chosen_id=pair.rejected_id,
        chosen_token_ids=pair.rejected_token_ids,
        chosen_tokenizer=pair.rejected_tokenizer,
        chosen_policy=pair.rejected_policy,
        rejected=pair.chosen,
        rejected_id=pair.chosen_id,
        rejected_token_ids=pair.chosen_token_ids,
        rejected_tokenizer=pair.chosen_tokenizer,
        rejected_policy=pair.chosen_policy,
        chosen_first=None if pair.chosen_first is None else not pair.chosen_first,
    )


def sides_of(contrasts: list[Contrast]) -> list[tuple[Candidate, Candidate]]:
    """Return the better and the worse candidate of each contrast."""
    return [(contrast.better, contrast.worse) for contrast in contrasts]


def make_pair(judged: JudgedPrompt, contrast: Contrast, labeler: str, strategy: Strategy) -> Pair:
    """Return a contrast as a training pair. `split_rows` holds some of them out."""
    prompt, places = judged.prompt, judged.places
    better, worse = contrast.better, contrast.worse
    is_first = places[better.candidate_id] < places[worse.candidate_id]
    return Pair(
        id=records.content_id(prompt.id, better.text, worse.text),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=better.messages,
        rejected=worse.messages,
        margin=None if contrast.score is None else contrast.margin,
        labeler=labeler,
        strategy=strategy,
        chosen_id=better.candidate_id,
        rejected_id=worse.candidate_id,
        split="train",
        chosen_token_ids=better.token_ids,
        rejected_token_ids=worse.token_ids,
        chosen_tokenizer=better.tokenizer,
        rejected_tokenizer=worse.tokenizer,
        rejected_finish_reason=worse.finish_reason,
        chosen_policy=better.policy,
        rejected_policy=worse.policy,
        # the order of sampled candidates means nothing
        chosen_first=is_first if labeler == "dataset" else None,
    )
