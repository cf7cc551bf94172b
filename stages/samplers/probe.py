"""A probe of a few prompts, for a temperature at which candidates end by themselves and still differ."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

from stages.config.blocks.sampling import Sample
from stages.models.contract import Contract
from stages.samplers.sampler import Missing, Request, Sampler
from stages.store.records import Candidate, Example
from stages.store.truncation import MOST
from stages.store.workspace import StageDir

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
PROMPTS, EACH = 8, 4  # prompts of a probe, and candidates per prompt and temperature


class Draw(NamedTuple):
    """A completion of a prompt at a temperature. `ended`: the model ended it before max_new_tokens."""

    prompt_id: str
    temperature: float
    text: str
    ended: bool


@dataclass(frozen=True)
class Endings:
    """Statistics of the candidates of one temperature. candidates: their number. ended: the share that the model
    ended. differ: the share of their prompts with at least two different ended candidates, which a pair needs."""

    candidates: int
    ended: float
    differ: float


def probe(sampler: Sampler, prompts: Sequence[Example], contract: Contract, seed: int) -> dict[float, Endings]:
    """Return the statistics at each of TEMPERATURES for completions of the first prompts."""
    temperatures = [temperature for temperature in TEMPERATURES for _ in range(EACH)]
    requests = [Request(e.id, e.messages, contract.prompt(e.messages), temperatures, seed) for e in prompts[:PROMPTS]]

    def draws() -> Iterator[Draw]:
        for request, completions in sampler.complete(requests):
            for temperature, c in zip(temperatures, completions, strict=True):
                if not isinstance(c, Missing):
                    text = str(c.text) if c.token_ids is None else contract.text(c.token_ids)
                    yield Draw(request.id, temperature, text, c.finish_reason == "stop")

    return endings(draws())


def endings(draws: Iterable[Draw]) -> dict[float, Endings]:
    """Return the statistics of each temperature. Draws of the same prompt must be adjacent."""
    count, ended, prompts, differ = (Counter[float]() for _ in range(4))
    for _, group in groupby(draws, lambda draw: draw.prompt_id):
        texts = defaultdict[float, set[str]](set)
        for draw in group:
            count[draw.temperature] += 1
            ended[draw.temperature] += draw.ended
            texts[draw.temperature] |= {draw.text.strip()} if draw.ended else set()
        prompts.update(texts.keys())
        differ.update(temperature for temperature, finished in texts.items() if len(finished) > 1)
    return {t: Endings(count[t], ended[t] / count[t], differ[t] / prompts[t]) for t in sorted(count)}


def best_temperature(by_temperature: dict[float, Endings]) -> float | None:
    """Return the temperature at which most candidates end and most prompts have two different ones; the lowest of
    several. Return None if candidates end at no temperature, or never differ."""
    usable = {t: row.differ for t, row in by_temperature.items() if row.ended > MOST and row.differ}
    return max(usable, key=lambda t: (usable[t], -t), default=None)


def table(by_temperature: dict[float, Endings]) -> str:
    """Return the statistics of every temperature as a table for a terminal."""
    lines = [f"{t:>11g}  {row.ended:>17.1%}  {row.differ:>36.1%}" for t, row in by_temperature.items()]
    return "\n".join(["temperature  end by themselves  prompts with two different ended ones", *lines])


def by_name(by_temperature: dict[float, Endings]) -> dict[str, dict[str, float]]:
    return {f"{t:g}": asdict(row) for t, row in by_temperature.items()}


def watch_endings(
    cfg: Sample,
    candidates: Iterable[Candidate],
    prompts: Sequence[Example],
    contract: Contract,
    open_sampler: Callable[[], Sampler],
    out: StageDir,
) -> dict[str, Any]:
    """Return the statistics of candidates by temperature. If few candidates end, warn, and probe the policy for a
    better temperature with `open_sampler`. An endpoint costs money, so it is not probed."""
    by_temperature = endings(Draw(c.prompt_id, c.temperature, c.text, c.finish_reason == "stop") for c in candidates)
    figures: dict[str, Any] = {"by_temperature": by_name(by_temperature)}
    count = sum(row.candidates for row in by_temperature.values())
    share = sum(row.candidates * row.ended for row in by_temperature.values()) / count
    if len(by_temperature) > 1:
        out.inform(f"Candidates by temperature:\n{table(by_temperature)}")
    if share > MOST:
        return figures
    key, form = (f"{cfg.of}.temperature", "{}") if cfg.of else (f"{cfg.drawn_by}.temperatures", "[{}]")
    longer = f"raise {cfg.drawn_by}.max_new_tokens={cfg.max_new_tokens}"
    advice, sampler = f"Lower the temperature, or {longer}.", open_sampler()
    if sampler.policy is None:
        answered = {c.prompt_id for c in candidates}
        probed = probe(sampler, [e for e in prompts if e.id in answered], contract, cfg.seed)
        figures["probe"] = by_name(probed)
        out.inform(f"A probe of {PROMPTS} prompts, with {EACH} candidates each per temperature:\n{table(probed)}")
        advice = f"A probe found no temperature at which most of them end and differ: {longer}, or train SFT longer."
        if (suggested := best_temperature(probed)) is not None:
            ended, differ = probed[suggested].ended, probed[suggested].differ
            shares = f"{ended:.0%} of candidates ended, and {differ:.0%} of prompts had two different ended candidates"
            advice = f"Type {key}={form.format(f'{suggested:g}')}: in a probe, {shares}."
    temperatures = form.format(",".join(f"{t:g}" for t in by_temperature))
    problem = f"only {share:.1%} of {count:,} candidates end by themselves. Truncated candidates are never chosen"
    out.warn(f"{key}={temperatures}: {problem}. {advice}")
    return figures
