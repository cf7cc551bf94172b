"""Stage `pairs`: chosen and rejected completions from judgements. Prompts that give no pair are counted by reason."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.config.errors import UserError
from stages.curation.answer_rules import band, broken, within
from stages.evaluation.pair_accuracy import PairAudit, accuracy_clause
from stages.pairing.admission import (
    BETTER_UNFINISHED,
    COPIES,
    DRAW,
    GIVE,
    TIES,
    WORSE_UNFINISHED,
    Admission,
    WaysOut,
    order_message,
    quantile_margins,
)
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import rank_contrasts
from stages.pairing.strategies import BY_STRENGTH, StrategyResult, pairs_per_prompt, table
from stages.store.judged_pool import judged
from stages.store.licences import Licences
from stages.store.records import Candidate, Example, Judgement, Pair, Records, content_id, save, stream
from stages.store.splits import side
from stages.store.truncation import ending_advice, resolve_unfinished, share_ended
from stages.store.workspace import StageDir


def run(cfg: Pairs, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `pairs.parquet`; the pairs of a prompt are all in training or all held out.

    Raises:
        UserError: where no prompt gives a pair.
    """
    pool = inputs["judged"]
    ended = share_ended(pool)
    cfg = replace(cfg, unfinished=resolve_unfinished(cfg.unfinished, ended))
    admissions = make_admissions(cfg, pool, ended)
    results, stats = [StrategyResult(strategy, cfg) for strategy in Strategy], PairStats()
    audit = PairAudit(pool) if (pool / "audit.jsonl").exists() else None
    save(out / "pairs.parquet", generate_pairs(cfg, pool, admissions, results, stats, audit), Pair)
    result = next(each for each in results if each.strategy is cfg.strategy)
    admission = admissions[cfg.strategy in BY_STRENGTH]
    if not result.pairs:
        reasons_note = "; ".join(
            f"{count} prompts: {reason}" for reason, count in result.prompts_without_pair.most_common()
        )
        reason = next((reason for reason, _ in result.prompts_without_pair.most_common(1)), "")
        order_note = order_message(stream(pool / "judgements.parquet", Judgement)) if reason == TIES else ""
        way_out = f" {order_note or admission.ways_out_by_reason[reason]}." if reason else ""
        raise UserError(f"no pair could be made of {stats.prompts} prompts ({reasons_note}).{way_out}")
    left_out = +(admission.refused_by_name() + result.left_out)
    copies, passed_over = (admission.refused[COPIES], stats.passed_over) if stats.preferred else (0, 0)
    if copies:
        out.warn(f"{copies} preferences are copies of others and left out")
    if passed_over:  # every one was given by somebody; of scored candidates only some are meant to be taken
        limit = pairs_per_prompt(cfg.strategy, cfg)
        takes_one = cfg.strategy is Strategy.best_worst
        more = f"{cfg.key}.strategy=all takes more" if takes_one else f"Raise {cfg.key}.max_per_prompt"
        takes = f"{cfg.key}.strategy={cfg.strategy} takes {limit} of a prompt"
        out.warn(f"{passed_over} preferences are left out: {takes}. {more}")
    if admission.ways_out.texts in GIVE.values():  # candidates of a file, all of whose judgements somebody meant
        for line in admission.filter_messages():
            out.warn(line)
        lost = ", ".join(f"{count} {name}" for name, count in left_out.most_common())
        comparisons = result.pairs + left_out.total()
        out.say(f"Of {comparisons} comparisons {result.pairs} became pairs; left out: {lost or 'none'}")
    unfinished = {  # pairs that have one, and contrasts that became none for it
        "kept as rejected": stats.unfinished,
        "dropped as rejected": admission.refused[WORSE_UNFINISHED],
        "refused as chosen": admission.refused[BETTER_UNFINISHED],
    }
    reasons = "; ".join(f"{count}: {reason}" for reason, count in result.prompts_without_pair.most_common())
    reasons_note = f" ({reasons})" * bool(reasons)
    reasons_note += "".join(f"; {count} unfinished {what}" for what, count in unfinished.items() if count)
    figures_by_strategy = {str(each.strategy): each.figures() for each in results}
    if audit:
        figures_by_strategy = {
            name: {**figures, "accuracy": audit.figures(Strategy(name))}
            for name, figures in figures_by_strategy.items()
        }
    accuracy = figures_by_strategy[cfg.strategy].get("accuracy")
    out.say(
        f"What each strategy would give of these judgements, all else as it is:\n{table(figures_by_strategy, cfg.strategy)}"
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
        "chosen_longer_by": figures_by_strategy[cfg.strategy]["chosen_longer_by"],
        "strategies": figures_by_strategy,
        **policy_counts(stats, pool),
        **({"expected_accuracy": accuracy} if accuracy else {}),
        **stats.licences.metrics(),
        "summary": f"{result.pairs} pairs ({stats.held_out} held out) from {stats.prompts} prompts; "
        f"{result.prompts_without_pair.total()} prompts gave none{reasons_note}"
        + (f"; {accuracy_clause(accuracy)}" if accuracy else "")
        + (f"; {copies} copies left out" if copies else "")
        + (f"; {passed_over} further preferences left out" if passed_over else ""),
    }


@dataclass
class PairStats:
    """What there is to tell of the pairs so far: of how many prompts, how many are held out or have an unfinished
    completion, whose candidates were chosen and rejected; whether they come of preferences, and how many of these
    became no pair because a prompt gives so many."""

    prompts: int = 0
    held_out: int = 0
    unfinished: int = 0
    preferred: bool = False
    passed_over: int = 0
    chosen: Counter[str | None] = field(default_factory=Counter)
    rejected: Counter[str | None] = field(default_factory=Counter)
    licences: Licences = field(default_factory=Licences)

    def count(self, pair: Pair) -> None:
        self.held_out += pair.split == "validation"
        self.unfinished += pair.rejected_finish_reason == "length"
        self.chosen[pair.chosen_policy] += 1
        self.rejected[pair.rejected_policy] += 1


def generate_pairs(
    cfg: Pairs,
    pool: Path,
    admissions: Sequence[Admission],
    results: Sequence[StrategyResult],
    stats: PairStats,
    audit: PairAudit | None,
) -> Iterator[Pair]:
    """Yield the pairs of the strategy that is asked for, prompt by prompt. Every strategy takes of each prompt what it
    would: contrasts as they were judged, or, for those BY_STRENGTH, as their ranking has them."""
    labeler = next((j.labeler for j in stream(pool / "judgements.parquet", Judgement)), "")
    for prompt, judgements, contrasts, unsound in judged_prompts(cfg, pool):
        stats.prompts += 1
        contrasts_by_admission = zip(admissions, (contrasts, rank_contrasts(contrasts)), strict=True)
        usable = [
            admission.admit(candidates_contrasts, unsound)
            for admission, candidates_contrasts in contrasts_by_admission
        ]
        taken_by_strategy = {
            each.strategy: each.take(prompt, *usable[each.strategy in BY_STRENGTH]) for each in results
        }
        if audit:
            sides = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
            by_strategy = {
                name: [(c.better, c.worse) for c in pairs] for name, (pairs, _) in taken_by_strategy.items()
            }
            audit.look_up(prompt, sides.values(), by_strategy)
        chosen, passed_over = taken_by_strategy[cfg.strategy]
        stats.preferred |= any(j.preference in ("a", "b") for j in judgements)
        stats.passed_over += (
            passed_over if cfg.strategy is not Strategy.ranked else 0
        )  # there every preference has its part
        for contrast in chosen:
            new_pair = make_pair(prompt, contrast, labeler, cfg)
            stats.licences.count(prompt)
            stats.count(new_pair)
            yield new_pair


def judged_prompts(cfg: Pairs, pool: Path) -> Iterator[tuple[Example, list[Judgement], list[Contrast], set[str]]]:
    """Every prompt with its judgements, the contrasts that they tell, and the candidates that must not be chosen."""
    limits = band(stream(pool / "candidates.parquet", Candidate)) if cfg.quality else None
    for prompt, candidates, judgements in judged(pool):
        unsound = {c.candidate_id for c in candidates if limits and (broken(prompt, c) or not within(c, limits))}
        yield prompt, judgements, comparisons(judgements, {c.candidate_id: c for c in candidates}), unsound


def make_admissions(cfg: Pairs, pool: Path, ended: float) -> list[Admission]:
    """Which contrasts may become pairs, as they were judged and as their ranking has them. Where margins must lie
    between quantiles, these are of the margins of all prompts. `ended`: the share of candidates that did."""
    samplers = {*Records(pool / "candidates.parquet", Candidate).column("sampler")}
    way_out = GIVE.get(samplers.pop(), DRAW) if len(samplers) == 1 else DRAW
    ways_out = WaysOut(way_out, way_out)
    if way_out == DRAW and (advice := ending_advice(ended)):
        ways_out = WaysOut(DRAW, advice, advice, advice)
    if not cfg.margin_quantiles:
        return [Admission(cfg, ways_out), Admission(cfg, ways_out)]
    distances = array("d"), array("d")
    for _, _, contrasts, unsound in judged_prompts(cfg, pool):
        for margins, contrast_list in zip(distances, (contrasts, rank_contrasts(contrasts)), strict=True):
            margins.extend(c.distance for c in Admission(cfg, ways_out).admit(contrast_list, unsound)[0])
    return [Admission(cfg, ways_out, quantile_margins(found, cfg.margin_quantiles)) for found in distances]


def policy_counts(stats: PairStats, pool: Path) -> dict[str, Any]:
    """Of candidates of several policies, how many of each there were, and how many were chosen and rejected."""
    drawn = Counter(Records(pool / "candidates.parquet", Candidate).column("policy"))
    if len(drawn) < 2:
        return {}
    counts = {
        name: {"candidates": n, "chosen": stats.chosen[name], "rejected": stats.rejected[name]}
        for name, n in drawn.items()
    }
    return {"policies": counts}


def make_pair(prompt: Example, contrast: Contrast, labeler: str, cfg: Pairs) -> Pair:
    better, worse = contrast.better, contrast.worse
    return Pair(
        id=content_id(prompt.id, better.text, worse.text),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=[{"role": "assistant", "content": better.text}],
        rejected=[{"role": "assistant", "content": worse.text}],
        margin=None if contrast.score is None else contrast.margin,
        labeler=labeler,
        strategy=cfg.strategy,
        chosen_id=better.candidate_id,
        rejected_id=worse.candidate_id,
        split=side(prompt.id, cfg.validation_fraction),
        chosen_token_ids=better.token_ids,
        rejected_token_ids=worse.token_ids,
        chosen_tokenizer=better.tokenizer,
        rejected_tokenizer=worse.tokenizer,
        rejected_finish_reason=worse.finish_reason,
        chosen_policy=better.policy,
        rejected_policy=worse.policy,
    )
