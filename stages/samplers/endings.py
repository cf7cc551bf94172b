"""The candidates that end by themselves, by temperature. A truncated candidate is never chosen."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from stages.config.blocks.sampling import DrawnCandidates
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
    count = Counter[float]()
    ended = Counter[float]()
    prompts = Counter[float]()
    differ = Counter[float]()
    for _, group in groupby(candidates, attrgetter("prompt_id")):
        texts = defaultdict[float, set[str]](set)
        for candidate in group:
            finished = texts[candidate.temperature]
            count[candidate.temperature] += 1
            if candidate.finish_reason == "stop":
                ended[candidate.temperature] += 1
                finished.add(candidate.answer.strip())
        for temperature, finished in texts.items():
            prompts[temperature] += 1
            differ[temperature] += len(finished) > 1
    return {
        t: Endings(count[t], ended[t] / count[t], differ[t] / prompts[t]) for t in sorted(count)
    }


def report_endings(
    cfg: DrawnCandidates, candidates: Iterable[Candidate], out: StageDir
) -> dict[str, Any]:
    """Return the statistics by temperature. Print them for several temperatures, and warn if few candidates end."""
    by_temperature = endings(candidates)
    lines = ["Candidates by temperature:"]
    lines.append("temperature  end by themselves  prompts with two different ended ones")
    count = 0
    ended = 0.0
    for temperature, row in by_temperature.items():
        lines.append(f"{temperature:>11g}  {row.ended:>17.1%}  {row.differ:>36.1%}")
        count += row.candidates
        ended += row.candidates * row.ended
    if len(by_temperature) > 1:
        out.inform("\n".join(lines))
    figures = {f"{temperature:g}": asdict(row) for temperature, row in by_temperature.items()}
    if ended / count <= MOST:
        setting = f"{cfg.command_line_block}.temperatures=[{','.join(figures)}]"
        out.warn(
            f"{setting}: only {ended / count:.1%} of {count:,} candidates end by themselves. Truncated candidates are "
            f"never chosen. Lower the temperature, or raise "
            f"{cfg.command_line_block}.max_new_tokens={cfg.max_new_tokens}."
        )
    return {"by_temperature": figures}
