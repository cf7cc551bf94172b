"""Stage `pairs`: make pairs of chosen and rejected completions from judgements, and count prompts without a pair."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import ControlPairs, Strategy
from stages.config.errors import UserError
from stages.curation.answer_rules import find_broken_rule, is_within, logprob_limits
from stages.evaluation.pair_accuracy import PairAudit, accuracy_clause
from stages.pairing import admission
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import rank_contrasts
from stages.pairing.strategies import (
    BY_STRENGTH,
    OF_BEST,
    StrategyResult,
    pairs_per_prompt,
    select_contrasts,
    table,
)
from stages.store import records
from stages.store.judged_pool import TokenCount, read_judged_prompts
from stages.store.licences import Provenance
from stages.store.records import Candidate, Example, Judgement, Pair, Records
from stages.store.splits import draw_side
from stages.store.text_units import transcript
from stages.store.truncation import ending_advice, resolve_unfinished, share_ended
from stages.store.workspace import StageDir


def run(cfg: Pairs, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `pairs.parquet`. A prompt's pairs are all of one split. Raise UserError if no prompt gives a pair."""
    if cfg.control:
        return publish_control(cfg, inputs, out)
    pool = inputs["judged"]
    ended = share_ended(pool)
    cfg = replace(cfg, unfinished=resolve_unfinished(cfg.unfinished, ended))
    admissions = make_admissions(cfg, pool, ended)
    results, stats = [StrategyResult(strategy, cfg) for strategy in Strategy], PairStats()
    audit = PairAudit(pool) if (pool / "audit.jsonl").exists() else None
    records.save(
        out / "pairs.parquet", generate_pairs(cfg, pool, admissions, results, stats, audit), Pair
    )
    result = next(each for each in results if each.strategy is cfg.strategy)
    rules = admissions[cfg.strategy in BY_STRENGTH]
    reasons = result.prompts_without_pair.most_common()
    note = "; ".join(f"{count}: {reason}" for reason, count in reasons)
    if not result.pairs:
        tied = bool(reasons) and reasons[0][0] == admission.TIES
        ties = records.stream(pool / "judgements.parquet", Judgement) if tied else ()
        way_out = (
            f" {admission.order_message(ties) or rules.advice[reasons[0][0]]}." if reasons else ""
        )
        raise UserError(
            f"{cfg.key}: no pair could be made from {stats.prompts} prompts ({note}).{way_out}"
        )
    refused = Counter(
        {rules.refused_names[reason]: count for reason, count in rules.refused.items()}
    )
    left_out = +(refused + result.left_out)
    copies, passed_over = (
        (rules.refused[admission.COPIES], stats.passed_over) if stats.preferred else (0, 0)
    )
    if copies:
        out.warn(
            f"{copies} preferences are left out because they repeat another preference with the same two texts"
        )
    # warns only for preferences, each of which somebody gave; scores make more contrasts than needed
    if passed_over:
        limit = pairs_per_prompt(cfg.strategy, cfg)
        of_best = cfg.strategy in (Strategy.best_worst, *OF_BEST)
        every = f"Set {cfg.key}.strategy=all and {cfg.key}.max_per_prompt={max(16, limit)}"
        more = every if of_best else f"Raise {cfg.key}.max_per_prompt"
        limits = f"{cfg.key}.strategy={cfg.strategy} makes at most {limit} pairs per prompt{', of its best' * of_best}"
        out.warn(
            f"{passed_over} preferences are left out, because {limits}. {more} to use more of them."
        )
    if cfg.validation_fraction and not stats.held_out:
        out.warn(
            f"No pair is held out for validation. Raise {cfg.key}.validation_fraction to evaluate with some."
        )
    if (
        unread := []
        if stats.scored
        else [f"{cfg.key}.{key}" for key in ("min_score", "min_margin") if vars(cfg)[key]]
    ):
        out.warn(f"{' and '.join(unread)} leave nothing out, as these preferences have no scores.")
    # a reward model does not read thoughts
    if (one_sided := stats.thought_on_one_side) and cfg.key == "pairs":
        out.warn(
            f"{one_sided} of {result.pairs} pairs have a thought on one side only, so that they teach whether to think. "
            "Give both sides a thought or none: label.reasoning=strip leaves out those of a file of preferences."
        )
    # the user provided the judgements, all of them to be used
    if rules.ways_out.texts in admission.GIVE.values():
        for line in rules.filter_messages():
            out.warn(line)
        lost = ", ".join(f"{count} {name}" for name, count in left_out.most_common())
        comparisons = result.pairs + left_out.total()
        out.inform(
            f"{result.pairs} of {comparisons} comparisons became pairs. Left out: {lost or 'none'}."
        )
    # numbers of pairs with a truncated completion, and of contrasts refused because of one
    unfinished = {
        "kept as rejected": stats.unfinished,
        "dropped as rejected": rules.refused[admission.WORSE_UNFINISHED],
        "refused as chosen": rules.refused[admission.BETTER_UNFINISHED],
    }
    drawn = Records(pool / "candidates.parquet", Candidate)
    lengths = zip(drawn.column("sampler"), drawn.column("n_tokens"), strict=True)
    tokens = sum(length for sampler, length in lengths if sampler not in records.FILE_SAMPLERS)
    note = f" ({note})" * bool(note) + "".join(
        f"; {n} unfinished {use}" for use, n in unfinished.items() if n
    )
    if (
        cfg.strategy is Strategy.likely
        and +result.left_out
        and (unranked := [*drawn.column("logprob")].count(None))
    ):
        out.warn(
            f"{unranked} candidates have no log-prob, so {cfg.key}.strategy=likely draws among them at random."
        )
    strategies = {str(each.strategy): each.figures() for each in results}
    if audit:
        strategies = {
            key: {**value, "accuracy": audit.figures(Strategy(key))}
            for key, value in strategies.items()
        }
    accuracy = strategies[cfg.strategy].get("accuracy")
    out.inform(
        f"Pairs of each strategy from these judgements (*: the one in use):\n{table(strategies, cfg.strategy)}"
    )
    return {
        "pairs": result.pairs,
        "held_out": stats.held_out,
        "prompts": stats.prompts,
        "prompts_without_pair": dict(result.prompts_without_pair),
        "unfinished": unfinished,
        "unfinished_rule": str(cfg.unfinished),
        "candidates_ended": ended,
        "comparisons": result.pairs + left_out.total(),
        "left_out": dict(left_out),
        "copies_left_out": copies,
        "preferences_left_out": passed_over,
        "sampled_tokens": tokens,
        "tokens_per_pair": tokens / result.pairs,
        "chosen_longer_by": strategies[cfg.strategy]["chosen_longer_by"],
        "strategies": strategies,
        **policy_counts(stats, pool),
        **({"expected_accuracy": accuracy} if accuracy else {}),
        **({"part_early": stats.part_early} if stats.part_early else {}),
        **({"thought_on_one_side": one_sided} if one_sided else {}),
        **stats.provenance.metrics(),
        "summary": f"{result.pairs} pairs ({stats.held_out} held out) from {stats.prompts} prompts"
        + f", {tokens / result.pairs:,.0f} sampled tokens per pair" * bool(tokens)
        + f"; {result.prompts_without_pair.total()} prompts without a pair{note}"
        + (f"; {accuracy_clause(accuracy)}" if accuracy else "")
        + (f"; {stats.part_early} part before their last turn" if stats.part_early else "")
        + (f"; {one_sided} with a thought on one side only" if one_sided else "")
        + (f"; {copies} copies left out" if copies else "")
        + (f"; {passed_over} further preferences left out" if passed_over else ""),
    }


@dataclass
class PairStats:
    """Counts of pairs. `unfinished`: with truncated rejected completions. `part_early`: of several turns.
    `thought_on_one_side`: only chosen or only rejected has a thought. `preferred`, `scored`: by the kind of labels.
    `passed_over`: beyond a prompt's limit. `chosen`, `rejected`: by policy."""

    prompts: int = 0
    held_out: int = 0
    unfinished: int = 0
    part_early: int = 0
    thought_on_one_side: int = 0
    preferred: bool = False
    scored: bool = False
    passed_over: int = 0
    chosen: Counter[str | None] = field(default_factory=Counter)
    rejected: Counter[str | None] = field(default_factory=Counter)
    provenance: Provenance = field(default_factory=Provenance)

    def count(self, pair: Pair) -> None:
        self.held_out += pair.split == "validation"
        self.unfinished += pair.rejected_finish_reason == "length"
        self.part_early += pair.parts_early
        self.chosen[pair.chosen_policy] += 1
        self.rejected[pair.rejected_policy] += 1


def generate_pairs(
    cfg: Pairs,
    pool: Path,
    admissions: Sequence[admission.Admission],
    results: Sequence[StrategyResult],
    stats: PairStats,
    audit: PairAudit | None,
) -> Iterator[Pair]:
    """Yield the pairs of the configured strategy, prompt by prompt, and collect the results of all strategies.
    Strategies in BY_STRENGTH choose from the ranking of a prompt's candidates, the others from judged contrasts."""
    labeler = next((j.labeler for j in records.stream(pool / "judgements.parquet", Judgement)), "")
    for prompt, judgements, contrasts, unsound in judged_prompts(cfg, pool):
        stats.prompts += 1
        variants = (contrasts, rank_contrasts(contrasts))
        usable = [
            rules.admit(variant, unsound)
            for rules, variant in zip(admissions, variants, strict=True)
        ]
        choices = {
            each.strategy: each.take(prompt, *usable[each.strategy in BY_STRENGTH])
            for each in results
        }
        if audit:
            sides = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
            by_strategy = {
                name: [(c.better, c.worse) for c in pairs] for name, (pairs, _) in choices.items()
            }
            audit.look_up(prompt, sides.values(), by_strategy)
        chosen, passed_over = choices[cfg.strategy]
        stats.scored |= any(c.score is not None for c in contrasts)
        stats.preferred |= any(j.preference in ("a", "b") for j in judgements)
        if cfg.strategy is not Strategy.ranked:  # a ranking uses every preference
            stats.passed_over += passed_over
        for contrast in chosen:
            new_pair = make_pair(prompt, contrast, labeler, cfg)
            stats.provenance.count(prompt)
            stats.count(new_pair)
            stats.thought_on_one_side += contrast.better.has_thought != contrast.worse.has_thought
            yield new_pair


def judged_prompts(
    cfg: Pairs, pool: Path
) -> Iterator[tuple[Example, list[Judgement], list[Contrast], set[str]]]:
    """Yield each prompt with its judgements, their contrasts, and the ids of candidates that must not be chosen."""
    limits = (
        logprob_limits(Records(pool / "candidates.parquet", TokenCount)) if cfg.quality else None
    )
    for prompt, candidates, judgements in read_judged_prompts(pool):
        unsound = {
            c.candidate_id
            for c in candidates
            if limits and (find_broken_rule(prompt, c) or not is_within(c, limits))
        }
        yield (
            prompt,
            judgements,
            comparisons(judgements, {c.candidate_id: c for c in candidates}),
            unsound,
        )


def make_admissions(cfg: Pairs, pool: Path, ended: float) -> list[admission.Admission]:
    """Return two filters of contrasts: for judged contrasts, and for those of a ranking. The quantiles of
    `cfg.margin_quantiles` are over the margins of all prompts. `ended`: the share of candidates that ended."""
    samplers = {*Records(pool / "candidates.parquet", Candidate).column("sampler")}
    way_out = (
        admission.GIVE.get(samplers.pop(), admission.DRAW) if len(samplers) == 1 else admission.DRAW
    )
    ways_out = admission.WaysOut(way_out, way_out)
    if way_out == admission.DRAW and (advice := ending_advice(ended)):
        ways_out = admission.WaysOut(admission.DRAW, advice, advice, advice)
    if not cfg.margin_quantiles:
        return [admission.Admission(cfg, ways_out), admission.Admission(cfg, ways_out)]
    distances = array("d"), array("d")
    for _, _, contrasts, unsound in judged_prompts(cfg, pool):
        for margins, variant in zip(distances, (contrasts, rank_contrasts(contrasts)), strict=True):
            margins.extend(
                c.distance for c in admission.Admission(cfg, ways_out).admit(variant, unsound)[0]
            )
    intervals = [admission.quantile_margins(margins, cfg.margin_quantiles) for margins in distances]
    return [admission.Admission(cfg, ways_out, interval) for interval in intervals]


def policy_counts(stats: PairStats, pool: Path) -> dict[str, Any]:
    """Return the numbers of candidates, chosen and rejected ones by policy; nothing for a single policy."""
    drawn = Counter(Records(pool / "candidates.parquet", Candidate).column("policy"))
    if len(drawn) < 2:
        return {}
    chosen, rejected = stats.chosen, stats.rejected
    return {
        "policies": {
            k: {"candidates": n, "chosen": chosen[k], "rejected": rejected[k]}
            for k, n in drawn.items()
        }
    }


def publish_control(cfg: Pairs, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish a control's pairs, of the same pool and prompts as the run's `pairs`, and as many."""
    run_pairs, pool = records.load(inputs["pairs"] / "pairs.parquet", Pair), inputs["judged"]
    if cfg.control is ControlPairs.coin:
        pairs = [
            turn_around(pair) if records.content_id(cfg.seed, pair.id) < "8" else pair
            for pair in run_pairs
        ]
        turned = sum(new is not pair for new, pair in zip(pairs, run_pairs, strict=True))
        how = f"{turned} of them turned around by a coin"
    else:
        ended, pair_counts = share_ended(pool), Counter(p.prompt_id for p in run_pairs)
        cfg = replace(cfg, unfinished=resolve_unfinished(cfg.unfinished, ended))
        by_strength, pairs, how = cfg.strategy in BY_STRENGTH, [], "valid contrasts at random"
        rules = make_admissions(cfg, pool, ended)[by_strength]
        for prompt, _, contrasts, unsound in judged_prompts(cfg, pool):
            if count := pair_counts[prompt.id]:
                block = replace(cfg, strategy=Strategy.random, max_per_prompt=count)
                variant = rank_contrasts(contrasts) if by_strength else contrasts
                chosen = select_contrasts(
                    rules.admit(variant, unsound)[0], Strategy.random, block, prompt.id
                )
                pairs += [
                    make_pair(prompt, contrast, run_pairs[0].labeler, block) for contrast in chosen
                ]
        if {p.id for p in pairs} == {p.id for p in run_pairs}:
            out.warn(
                "control_pairs=random: no prompt has another valid pair, so these are the run's. Set it to coin."
            )
    records.save(out / "pairs.parquet", pairs, Pair)
    summary = f"{len(pairs)} pairs ({how}) of the same candidates as the run's {len(run_pairs)}"
    return {
        "pairs": len(pairs),
        "held_out": sum(p.split == "validation" for p in pairs),
        "summary": summary,
    }


def turn_around(pair: Pair) -> Pair:
    """Return the pair with its sides exchanged, or as it is if its rejected one is cut off: a chosen one has ended."""
    if pair.rejected_finish_reason != "stop":
        return pair
    names = [name.removeprefix("chosen") for name in vars(pair) if name.startswith("chosen")]
    sides = {
        f"{a}{name}": vars(pair)[f"{b}{name}"]
        for name in names
        for a, b in permutations(("chosen", "rejected"))
    }
    new_id = records.content_id(pair.prompt_id, transcript(pair.rejected), transcript(pair.chosen))
    return replace(pair, **sides, id=new_id, margin=None if pair.margin is None else -pair.margin)


def make_pair(prompt: Example, contrast: Contrast, labeler: str, cfg: Pairs) -> Pair:
    better, worse = contrast.better, contrast.worse
    return Pair(
        id=records.content_id(prompt.id, better.text, worse.text),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=better.messages,
        rejected=worse.messages,
        margin=None if contrast.score is None else contrast.margin,
        labeler=labeler,
        strategy=cfg.strategy,
        chosen_id=better.candidate_id,
        rejected_id=worse.candidate_id,
        split=draw_side(prompt, cfg.validation_fraction),
        chosen_token_ids=better.token_ids,
        rejected_token_ids=worse.token_ids,
        chosen_tokenizer=better.tokenizer,
        rejected_tokenizer=worse.tokenizer,
        rejected_finish_reason=worse.finish_reason,
        chosen_policy=better.policy,
        rejected_policy=worse.policy,
    )
