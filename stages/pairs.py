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
from stages.evaluation.pair_accuracy import PairAudit, in_words
from stages.pairing.admission import (
    BETTER_UNFINISHED,
    COPY,
    DRAW,
    GIVE,
    TIES,
    WORSE_UNFINISHED,
    Admission,
    WaysOut,
    between,
    by_order,
)
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.plackett_luce import ranked
from stages.pairing.strategies import BY_STRENGTH, StrategyResult, limit_of, table
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
    admissions = admitting(cfg, pool, ended)
    takings, made = [StrategyResult(strategy, cfg) for strategy in Strategy], PairStats()
    audit = PairAudit(pool) if (pool / "audit.jsonl").exists() else None
    save(out / "pairs.parquet", pairs_of(cfg, pool, admissions, takings, made, audit), Pair)
    taken = next(each for each in takings if each.strategy is cfg.strategy)
    admission = admissions[cfg.strategy in BY_STRENGTH]
    if not taken.pairs:
        told = "; ".join(f"{count} prompts: {reason}" for reason, count in taken.without.most_common())
        reason = next((reason for reason, _ in taken.without.most_common(1)), "")
        turned = by_order(stream(pool / "judgements.parquet", Judgement)) if reason == TIES else ""
        way_out = f" {turned or admission.ways[reason]}." if reason else ""
        raise UserError(f"no pair could be made of {made.prompts} prompts ({told}).{way_out}")
    left_out = +(admission.by_name() + taken.left_out)
    copies, passed_over = (admission.refused[COPY], made.passed_over) if made.preferred else (0, 0)
    if copies:
        out.warn(f"{copies} preferences are copies of others and left out")
    if passed_over:  # every one was given by somebody; of scored candidates only some are meant to be taken
        limit = limit_of(cfg.strategy, cfg)
        one = cfg.strategy is Strategy.best_worst
        more = f"{cfg.key}.strategy=all takes more" if one else f"Raise {cfg.key}.max_per_prompt"
        takes = f"{cfg.key}.strategy={cfg.strategy} takes {limit} of a prompt"
        out.warn(f"{passed_over} preferences are left out: {takes}. {more}")
    if admission.ways_out.texts in GIVE.values():  # candidates of a file, all of whose judgements somebody meant
        for line in admission.filtered():
            out.warn(line)
        lost = ", ".join(f"{count} {name}" for name, count in left_out.most_common())
        comparisons = taken.pairs + left_out.total()
        out.say(f"Of {comparisons} comparisons {taken.pairs} became pairs; left out: {lost or 'none'}")
    unfinished = {  # pairs that have one, and contrasts that became none for it
        "kept as rejected": made.unfinished,
        "dropped as rejected": admission.refused[WORSE_UNFINISHED],
        "refused as chosen": admission.refused[BETTER_UNFINISHED],
    }
    reasons = "; ".join(f"{count}: {reason}" for reason, count in taken.without.most_common())
    told = f" ({reasons})" * bool(reasons)
    told += "".join(f"; {count} unfinished {what}" for what, count in unfinished.items() if count)
    others = {str(each.strategy): each.figures() for each in takings}
    if audit:
        others = {name: {**found, "accuracy": audit.figures(Strategy(name))} for name, found in others.items()}
    accuracy = others[cfg.strategy].get("accuracy")
    out.say(f"What each strategy would give of these judgements, all else as it is:\n{table(others, cfg.strategy)}")
    return {
        "pairs": taken.pairs,
        "held_out": made.held_out,
        "prompts": made.prompts,
        "prompts_without_pair": dict(taken.without),
        "unfinished": unfinished,
        "unfinished_rule": str(cfg.unfinished),
        "candidates_ended": ended,
        "comparisons": taken.pairs + left_out.total(),
        "left_out": dict(left_out),
        "copies_left_out": copies,
        "preferences_left_out": passed_over,
        "chosen_longer_by": others[cfg.strategy]["chosen_longer_by"],
        "strategies": others,
        **won(made, pool),
        **({"expected_accuracy": accuracy} if accuracy else {}),
        **made.licences.metrics(),
        "summary": f"{taken.pairs} pairs ({made.held_out} held out) from {made.prompts} prompts; "
        f"{taken.without.total()} prompts gave none{told}"
        + (f"; {in_words(accuracy)}" if accuracy else "")
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

    def count(self, made: Pair) -> None:
        self.held_out += made.split == "validation"
        self.unfinished += made.rejected_finish_reason == "length"
        self.chosen[made.chosen_policy] += 1
        self.rejected[made.rejected_policy] += 1


def pairs_of(
    cfg: Pairs,
    pool: Path,
    admissions: Sequence[Admission],
    takings: Sequence[StrategyResult],
    made: PairStats,
    audit: PairAudit | None,
) -> Iterator[Pair]:
    """Yield the pairs of the strategy that is asked for, prompt by prompt. Every strategy takes of each prompt what it
    would: contrasts as they were judged, or, for those BY_STRENGTH, as their ranking has them."""
    labeler = next((j.labeler for j in stream(pool / "judgements.parquet", Judgement)), "")
    for prompt, judgements, contrasts, unsound in compared(cfg, pool):
        made.prompts += 1
        both = zip(admissions, (contrasts, ranked(contrasts)), strict=True)
        usable = [admission.admit(its, unsound) for admission, its in both]
        taken = {each.strategy: each.take(prompt, *usable[each.strategy in BY_STRENGTH]) for each in takings}
        if audit:
            sides = {side.candidate_id: side for c in contrasts for side in (c.better, c.worse)}
            by_strategy = {name: [(c.better, c.worse) for c in pairs] for name, (pairs, _) in taken.items()}
            audit.look_up(prompt, sides.values(), by_strategy)
        chosen, left = taken[cfg.strategy]
        made.preferred |= any(j.preference in ("a", "b") for j in judgements)
        made.passed_over += left if cfg.strategy is not Strategy.ranked else 0  # there every preference has its part
        for contrast in chosen:
            found = pair(prompt, contrast, labeler, cfg)
            made.licences.count(prompt)
            made.count(found)
            yield found


def compared(cfg: Pairs, pool: Path) -> Iterator[tuple[Example, list[Judgement], list[Contrast], set[str]]]:
    """Every prompt with its judgements, the contrasts that they tell, and the candidates that must not be chosen."""
    limits = band(stream(pool / "candidates.parquet", Candidate)) if cfg.quality else None
    for prompt, candidates, judgements in judged(pool):
        unsound = {c.candidate_id for c in candidates if limits and (broken(prompt, c) or not within(c, limits))}
        yield prompt, judgements, comparisons(judgements, {c.candidate_id: c for c in candidates}), unsound


def admitting(cfg: Pairs, pool: Path, ended: float) -> list[Admission]:
    """Which contrasts may become pairs, as they were judged and as their ranking has them. Where margins must lie
    between quantiles, these are of the margins of all prompts. `ended`: the share of candidates that did."""
    samplers = {*Records(pool / "candidates.parquet", Candidate).column("sampler")}
    others = GIVE.get(samplers.pop(), DRAW) if len(samplers) == 1 else DRAW
    ways = WaysOut(others, others)
    if others == DRAW and (advice := ending_advice(ended)):
        ways = WaysOut(DRAW, advice, advice, advice)
    if not cfg.margin_quantiles:
        return [Admission(cfg, ways), Admission(cfg, ways)]
    distances = array("d"), array("d")
    for _, _, contrasts, unsound in compared(cfg, pool):
        for found, its in zip(distances, (contrasts, ranked(contrasts)), strict=True):
            found.extend(c.distance for c in Admission(cfg, ways).admit(its, unsound)[0])
    return [Admission(cfg, ways, between(found, cfg.margin_quantiles)) for found in distances]


def won(made: PairStats, pool: Path) -> dict[str, Any]:
    """Of candidates of several policies, how many of each there were, and how many were chosen and rejected."""
    drawn = Counter(Records(pool / "candidates.parquet", Candidate).column("policy"))
    if len(drawn) < 2:
        return {}
    counts = {
        name: {"candidates": n, "chosen": made.chosen[name], "rejected": made.rejected[name]}
        for name, n in drawn.items()
    }
    return {"policies": counts}


def pair(prompt: Example, contrast: Contrast, labeler: str, cfg: Pairs) -> Pair:
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
