"""Stage `pairs`: chosen and rejected completions from judgements. Prompts that give no pair are counted by reason."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from stages.config.blocks.pairs import Pairs
from stages.config.choices import Strategy
from stages.config.errors import UserError
from stages.curation.rules import band, broken, within
from stages.pairing.admission import BETTER_UNFINISHED, DRAW, GIVE, WORSE_UNFINISHED, Admission
from stages.pairing.contrasts import Contrast, comparisons
from stages.pairing.held_out import side
from stages.pairing.ranking import ranked
from stages.pairing.strategies import limit_of
from stages.pairing.taking import Taking, table, take
from stages.store.kept import having, load_json
from stages.store.licences import Licences
from stages.store.records import GIVEN, Candidate, Example, Judgement, Pair, content_id, load, save
from stages.store.work import Work


def run(cfg: Pairs, inputs: dict[str, Path], out: Work) -> dict[str, Any]:
    """Publish `pairs.parquet`; the pairs of a prompt are all in training or all held out.

    Raises:
        UserError: where no prompt gives a pair.
    """
    judged = inputs["judged"]
    prompts = load(judged / "prompts.parquet", Example)
    candidates = {c.candidate_id: c for c in load(judged / "candidates.parquet", Candidate)}
    judgements: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in load(judged / "judgements.parquet", Judgement):
        judgements[judgement.prompt_id].append(judgement)
    labeler = next(iter(judgements.values()))[0].labeler if judgements else ""

    admissions = admitted(cfg, prompts, candidates, judgements)
    takings = {strategy: take(prompts, admission, strategy, cfg) for strategy, admission in admissions.items()}
    taken, refused = takings[cfg.strategy], admissions[cfg.strategy].refused
    pairs = [pair(prompt, contrast, labeler, cfg) for prompt, contrast in taken.pairs]
    if not pairs:
        told = "; ".join(f"{count} prompts: {reason}" for reason, count in taken.without.most_common())
        ways = "".join(f" {admissions[cfg.strategy].ways[reason]}." for reason, _ in taken.without.most_common(1))
        raise UserError(f"no pair could be made of {len(prompts)} prompts ({told}).{ways}")
    copies, passed_over = left_out(cfg, taken, judgements)
    if copies:
        out.warn(f"{copies} preferences are copies of others and left out")
    if passed_over:  # every one was given by somebody; of scored candidates only some are meant to be taken
        out.warn(
            f"{passed_over} preferences are left out: pairs.strategy={cfg.strategy} takes "
            f"{limit_of(cfg.strategy, cfg)} of a prompt. pairs=all takes more"
        )
    save(out / "pairs.parquet", pairs, Pair)
    licences = Licences()
    for prompt, _ in taken.pairs:
        licences.count(prompt)
    aside = sum(p.split == "validation" for p in pairs)
    unfinished = {  # pairs that have one, and contrasts that became none for it
        "kept as rejected": sum(p.rejected_finish_reason == "length" for p in pairs),
        "dropped as rejected": refused[WORSE_UNFINISHED],
        "refused as chosen": refused[BETTER_UNFINISHED],
    }
    told = "".join(f"; {count} unfinished {what}" for what, count in unfinished.items() if count)
    others = {str(strategy): each.figures() for strategy, each in takings.items()}
    out.say(f"What each strategy would give of these judgements, all else as it is:\n{table(others, cfg.strategy)}")
    return {
        "pairs": len(pairs),
        "held_out": aside,
        "prompts": len(prompts),
        "prompts_without_pair": dict(taken.without),
        "unfinished": unfinished,
        "copies_left_out": copies,
        "preferences_left_out": passed_over,
        "chosen_longer_by": others[cfg.strategy]["chosen_longer_by"],
        "strategies": others,
        **won(pairs, candidates),
        **expected(judged),
        **licences.metrics(),
        "summary": f"{len(pairs)} pairs ({aside} held out) from {len(prompts)} prompts; "
        f"{taken.without.total()} prompts gave none{told}"
        + (f"; {copies} copies and {passed_over} further preferences left out" if copies or passed_over else ""),
    }


def admitted(
    cfg: Pairs, prompts: list[Example], candidates: dict[str, Candidate], judgements: dict[str, list[Judgement]]
) -> dict[Strategy, Admission]:
    """What each strategy may take: contrasts as they were judged, or, for `ranked`, as their ranking has them."""
    limits, of = band(candidates.values()), {prompt.id: prompt for prompt in prompts}
    unsound = set[str]()
    if cfg.quality:
        unsound = {i for i, c in candidates.items() if broken(of[c.prompt_id], c) or not within(c, limits)}
    others = GIVE if all(c.sampler in GIVEN for c in candidates.values()) else DRAW
    as_judged, as_ranked = Admission(cfg, unsound, others), Admission(cfg, unsound, others)
    for prompt in prompts:
        contrasts = comparisons(judgements[prompt.id], candidates)
        as_judged.admit(prompt.id, contrasts)
        as_ranked.admit(prompt.id, ranked(contrasts))
    for admission in (as_judged, as_ranked):
        admission.narrow()
    return {strategy: as_ranked if strategy is Strategy.ranked else as_judged for strategy in Strategy}


def left_out(cfg: Pairs, taken: Taking, judgements: dict[str, list[Judgement]]) -> tuple[int, int]:
    """How many preferences are copies of others, and how many more became no pair because a prompt gives so many. In a
    ranking, every one has its part."""
    copies = passed_over = 0
    for prompt, left in taken.left.items():
        preferred = [(j.a, j.b, j.preference) for j in judgements[prompt] if j.preference]
        copies += len(preferred) - len(set(preferred))
        passed_over += left if preferred and cfg.strategy is not Strategy.ranked else 0
    return copies, passed_over


def won(pairs: list[Pair], candidates: dict[str, Candidate]) -> dict[str, Any]:
    """Of candidates of several policies, how many of each there were, and how many were chosen and rejected."""
    drawn = Counter(c.policy for c in candidates.values())
    if len(drawn) < 2:
        return {}
    chosen, rejected = (Counter(p.chosen_policy for p in pairs), Counter(p.rejected_policy for p in pairs))
    counts = {name: {"candidates": n, "chosen": chosen[name], "rejected": rejected[name]} for name, n in drawn.items()}
    return {"policies": counts}


def expected(judged: Path) -> dict[str, Any]:
    """How often a pair is the right way round, by the labelling's audit, where it had one that can say so."""
    audited = judged / "reliability.json"
    found = load_json(audited, having()).get("pair_accuracy") if audited.exists() else None
    return {"expected_accuracy": found} if found else {}


def pair(prompt: Example, contrast: Contrast, labeler: str, cfg: Pairs) -> Pair:
    better, worse = contrast.better, contrast.worse
    return Pair(
        id=content_id(prompt.id, better.text, worse.text),
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=[{"role": "assistant", "content": better.text}],
        rejected=[{"role": "assistant", "content": worse.text}],
        margin=contrast.margin,
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
