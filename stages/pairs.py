"""Stage `pairs`: chosen and rejected completions from judgements. Prompts that give no pair are counted by reason."""

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from stages.config.choices import Strategy, Unfinished
from stages.config.errors import UserError
from stages.config.schema import Pairs
from stages.curation.rules import band, broken, within
from stages.store.kept import having, load_json
from stages.store.records import Candidate, Example, Judgement, Pair, content_id, load, save
from stages.store.work import Work

BETTER_UNFINISHED = "only an unfinished candidate was better"
WORSE_UNFINISHED = "only an unfinished candidate was worse"


@dataclass(frozen=True)
class Contrast:
    """Two candidates of a prompt, by how much one is better, and the score of that one. Margin and score are None
    where a labeler gave their order alone; `lead` is then by how many more others the better one was preferred."""

    better: Candidate
    worse: Candidate
    margin: float | None
    score: float | None = None
    lead: float = 0.0

    @property
    def distance(self) -> float:
        return self.lead if self.margin is None else self.margin


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

    limits = band(candidates.values())
    pairs: list[Pair] = []
    of_task = Counter[str]()
    without, refused = Counter[str](), Counter[str]()
    copies = passed_over = 0
    for prompt in prompts:
        contrasts = comparisons(judgements[prompt.id], candidates)
        sound = lambda c, of=prompt: not cfg.quality or (broken(of, c) is None and within(c, limits))
        usable, reason = admissible(contrasts, cfg, refused, sound)
        if usable and cfg.max_per_task and max(of_task[task] for task in prompt.tasks) >= cfg.max_per_task:
            usable, reason = [], "its task has pairs.max_per_task pairs"
        if not usable:
            without[reason] += 1
        chosen = select(usable, cfg, random.Random(f"{cfg.seed}/{prompt.id}"))
        of_task.update(prompt.tasks * len(chosen))
        preferred = [(j.a, j.b, j.preference) for j in judgements[prompt.id] if j.preference]
        copies += len(preferred) - len(set(preferred))
        passed_over += len(usable) - len(chosen) if preferred else 0
        pairs += [pair(prompt, contrast, labeler, cfg) for contrast in chosen]
    if not pairs:
        told = "; ".join(f"{count} prompts: {reason}" for reason, count in without.most_common())
        raise UserError(
            f"no pair could be made of {len(prompts)} prompts ({told}). Raise sample.temperatures, "
            "sample.candidates_per_prompt or sample.max_new_tokens, or loosen pairs.min_margin and "
            "pairs.max_length_ratio."
        )
    if copies:
        out.warn(f"{copies} preferences are copies of others and left out")
    if passed_over:  # every one was given by somebody; of scored candidates only some are meant to be taken
        out.warn(
            f"{passed_over} preferences are left out: pairs.strategy={cfg.strategy} takes {limit_of(cfg)} of a "
            "prompt. pairs=all takes more"
        )
    save(out / "pairs.parquet", pairs, Pair)
    held_out = sum(p.split == "validation" for p in pairs)
    unfinished = {  # pairs that have one, and contrasts that became none for it
        "kept as rejected": sum(p.rejected_finish_reason == "length" for p in pairs),
        "dropped as rejected": refused[WORSE_UNFINISHED],
        "refused as chosen": refused[BETTER_UNFINISHED],
    }
    told = "".join(f"; {count} unfinished {what}" for what, count in unfinished.items() if count)
    lengths = [candidates[p.chosen_id].n_tokens - candidates[p.rejected_id].n_tokens for p in pairs]
    return {
        "pairs": len(pairs),
        "held_out": held_out,
        "prompts": len(prompts),
        "prompts_without_pair": dict(without),
        "unfinished": unfinished,
        "copies_left_out": copies,
        "preferences_left_out": passed_over,
        "chosen_longer_by": sum(lengths) / len(lengths),
        **expected(judged),
        "summary": f"{len(pairs)} pairs ({held_out} held out) from {len(prompts)} prompts; "
        f"{without.total()} prompts gave none{told}"
        + (f"; {copies} copies and {passed_over} further preferences left out" if copies or passed_over else ""),
    }


def expected(judged: Path) -> dict[str, Any]:
    """How often a pair is the right way round, by the labelling's audit, where it had one that can say so."""
    audited = judged / "reliability.json"
    found = load_json(audited, having()).get("pair_accuracy") if audited.exists() else None
    return {"expected_accuracy": found} if found else {}


def comparisons(judgements: list[Judgement], candidates: dict[str, Candidate]) -> list[Contrast]:
    """Every two candidates of a prompt that were judged, better first; equal scores and ties come with margin 0. Where
    there are preferences alone, a candidate stands as high as it was preferred more often than not (Copeland)."""
    contrasts: list[Contrast] = []
    preferred = [(j, str(j.a), str(j.b)) for j in judgements if j.preference is not None]
    stands = Counter[str]()
    for judgement, a_id, b_id in preferred:
        sign = {"a": 1, "b": -1}.get(str(judgement.preference), 0)
        stands.update({a_id: sign, b_id: -sign})
    for judgement, a_id, b_id in preferred:
        above, below = (b_id, a_id) if judgement.preference == "b" else (a_id, b_id)
        margin, lead = 0.0 if judgement.preference == "tie" else None, stands[above] - stands[below]
        contrasts.append(Contrast(candidates[above], candidates[below], margin, lead=lead))
    scored = [(candidates[str(j.candidate_id)], j.score) for j in judgements if j.score is not None]
    for (a, a_score), (b, b_score) in combinations(scored, 2):
        better, worse = (a, b) if a_score >= b_score else (b, a)
        contrasts.append(Contrast(better, worse, abs(a_score - b_score), max(a_score, b_score)))
    return contrasts


def admissible(
    contrasts: list[Contrast],
    cfg: Pairs,
    refused: Counter[str],
    sound: Callable[[Candidate], bool] = lambda candidate: True,
) -> tuple[list[Contrast], str]:
    """The contrasts that may become pairs; where none may, also the rule that refused the last of them. How many each
    rule refused is added to `refused`. `sound`: whether a candidate may be learnt from, whatever its score."""
    if not contrasts:
        return [], "fewer than two judged candidates"
    rules: dict[str, Callable[[Contrast], bool]] = {
        "every candidate got the same score": lambda c: c.margin is None or c.margin > 0,
        "no two candidates differ in text": lambda c: c.better.text.strip() != c.worse.text.strip(),
        # A chosen completion without an end would teach to go on; with one that was never drawn, an end too soon.
        BETTER_UNFINISHED: lambda c: c.better.finish_reason == "stop",
        WORSE_UNFINISHED: lambda c: c.worse.finish_reason == "stop" or cfg.unfinished is Unfinished.keep,
        "no better candidate keeps the rules of pairs.quality": lambda c: sound(c.better),
        "no score of pairs.min_score or more": lambda c: c.score is None or c.score >= cfg.min_score,
        "no margin above pairs.min_margin": lambda c: c.margin is None or c.margin > cfg.min_margin,
        "every length ratio above pairs.max_length_ratio": lambda c: (
            cfg.max_length_ratio is None or length_ratio(c) <= cfg.max_length_ratio
        ),
    }
    for reason, rule in rules.items():
        asked = len(contrasts)
        contrasts = [contrast for contrast in contrasts if rule(contrast)]
        refused[reason] += asked - len(contrasts)
        if not contrasts:
            return [], reason
    different = {(c.better.text.strip(), c.worse.text.strip()): c for c in contrasts}
    return list(different.values()), ""


def length_ratio(contrast: Contrast) -> float:
    short, long = sorted((contrast.better.n_tokens, contrast.worse.n_tokens))
    return long / max(1, short)


def select(contrasts: list[Contrast], cfg: Pairs, rng: random.Random) -> list[Contrast]:
    """At most `max_per_prompt` contrasts, as the strategy orders them. Those of equal margin come in random order,
    drawn with the prompt as seed."""
    rng.shuffle(contrasts)
    if cfg.strategy is Strategy.margin:
        contrasts.sort(key=lambda c: c.distance)
    elif cfg.strategy is not Strategy.random:
        contrasts.sort(key=lambda c: -c.distance)
    return contrasts[: limit_of(cfg)]


def limit_of(cfg: Pairs) -> int:
    """How many pairs a prompt gives at most."""
    return 1 if cfg.strategy is Strategy.best_worst else cfg.max_per_prompt


def pair(prompt: Example, contrast: Contrast, labeler: str, cfg: Pairs) -> Pair:
    better, worse = contrast.better, contrast.worse
    held_out = int(content_id("held out", prompt.id)[:8], 16) / 2**32 < cfg.validation_fraction
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
        split="validation" if held_out else "train",
        chosen_token_ids=better.token_ids,
        rejected_token_ids=worse.token_ids,
        chosen_tokenizer=better.tokenizer,
        rejected_tokenizer=worse.tokenizer,
        rejected_finish_reason=worse.finish_reason,
    )
