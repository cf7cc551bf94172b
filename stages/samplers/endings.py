"""The candidates that end by themselves, by temperature. A truncated candidate is never chosen."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from stages.config.blocks.sampling import Drawn
from stages.store.records import Candidate
from stages.store.truncation import MOST
from stages.store.workspace import StageDir


@dataclass(frozen=True)
class Endings:
    """Statistics of the candidates of one temperature. candidates: their number. ended: the share that the model
    ended. differ: the share of their prompts with at least two different ended candidates, which a pair needs."""

    candidates: int
    ended: float
    differ: float


def endings(candidates: Iterable[Candidate]) -> dict[float, Endings]:
    """Return the statistics of each temperature. Candidates of the same prompt must be adjacent."""
    count, ended, prompts, differ = (Counter[float]() for _ in range(4))
    for _, group in groupby(candidates, lambda c: c.prompt_id):
        texts = defaultdict[float, set[str]](set)
        for c in group:
            is_ended = c.finish_reason == "stop"
            count[c.temperature] += 1
            ended[c.temperature] += is_ended
            texts[c.temperature] |= {c.answer.strip()} if is_ended else set()
        prompts.update(texts.keys())
        differ.update(temperature for temperature, finished in texts.items() if len(finished) > 1)
    return {
        t: Endings(count[t], ended[t] / count[t], differ[t] / prompts[t]) for t in sorted(count)
    }


def report_endings(cfg: Drawn, candidates: Iterable[Candidate], out: StageDir) -> dict[str, Any]:
    """Return the statistics by temperature. Print them for several temperatures, and warn if few candidates end."""
    by_temperature = endings(candidates)
    count = sum(row.candidates for row in by_temperature.values())
    share = sum(row.candidates * row.ended for row in by_temperature.values()) / count
    if len(by_temperature) > 1:
        lines = [
            f"{t:>11g}  {row.ended:>17.1%}  {row.differ:>36.1%}"
            for t, row in by_temperature.items()
        ]
        lines.insert(0, "temperature  end by themselves  prompts with two different ended ones")
        out.inform("\n".join(["Candidates by temperature:", *lines]))
    if share <= MOST:
        in_pool = cfg.key != "sample"
        key, form = (
            (f"{cfg.key}.temperature", "{}")
            if in_pool
            else (f"{cfg.drawn_by}.temperatures", "[{}]")
        )
        temperatures = form.format(",".join(f"{t:g}" for t in by_temperature))
        problem = f"only {share:.1%} of {count:,} candidates end by themselves. Truncated candidates are never chosen"
        way_out = (
            f"Lower the temperature, or raise {cfg.drawn_by}.max_new_tokens={cfg.max_new_tokens}"
        )
        out.warn(
            f"{key}={temperatures}: {problem}. {way_out}. Several temperatures show which of them end."
        )
    return {"by_temperature": {f"{t:g}": asdict(row) for t, row in by_temperature.items()}}
