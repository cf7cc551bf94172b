"""Judges whose verdicts are a function of the shown texts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.config.blocks.labels import Judge
from stages.labelers import rubric
from stages.labelers.judge import JudgeLabeler
from stages.labelers.labeler import Pool
from stages.store.records import Judgement
from stages.store.source_files import pin
from tests.endpoints.servers import Request
from tests.helpers import settings
from tests.rows import work_with_calls

FENCED = re.compile(r"<<(REQUEST|A|B|ANSWER) (\w+)>>\n(.*?)\n<<END \2>>", re.DOTALL)
PROBE = '{"word": "plumb"}'
# Ways to show texts to a judge: as in stages/labelers/rubric.py, and two with less protection.
FENCES: dict[str, Callable[[str, str, str], str]] = {
    "held down": rubric.fence_text,
    "marks alone": lambda name, text, mark: f"<<{name.upper()} {mark}>>\n{text}\n<<END {mark}>>",
    "nothing": lambda name, text, mark: f"{name.upper()}:\n{text}",
}


def shown_texts(request: Request) -> dict[str, str]:
    """Return the texts in a judge's request, by name."""
    return {name: text for name, _, text in FENCED.findall(request["messages"][-1]["content"])}


def is_probe(request: Request) -> bool:
    return "word" in json.dumps(request.get("response_format", ""))


def judging(of: Callable[[dict[str, str]], Any], key: str = "verdict") -> Callable[[Request], str]:
    """Return a server's reply function that follows schemas and takes its verdict from `of`."""
    return lambda request: (
        PROBE if is_probe(request) else json.dumps({key: of(shown_texts(request))})
    )


def quality(text: str) -> int:
    """Return the number at the end of a text: 3 for `fair 3`."""
    return int(text.split()[-1])


def greater(a: Any, b: Any) -> str:
    """Return the verdict that prefers the greater of two values."""
    if a == b:
        return "tie"
    return "A" if a > b else "B"


def better(texts: dict[str, str]) -> str:
    return greater(quality(texts["A"]), quality(texts["B"]))


def by_letters(texts: dict[str, str]) -> str:
    """Return which text is better: the later one in the alphabet; some are ties."""
    a = texts["A"]
    b = texts["B"]
    if (a[:1], len(a) % 4) == (b[:1], len(b) % 4):
        return "tie"
    return greater(a, b)


def block(folder: Path, *urls: str, retries: int = 20, **judge: Any) -> Judge:
    """Return the block of `label=judge` with a judge at each address, as the pipeline passes it to the stage."""
    runtime = f"{{backoff: 0.01, retries: {retries}, timeout: 30}}"
    endpoints = ",".join(
        f"{{base_url: '{url}', model: judge-{i}, runtime: {runtime}}}" for i, url in enumerate(urls)
    )
    typed = [f"label.{name}={value}" for name, value in judge.items() if name != "max_failed"]
    limit = f"label.max_failed={judge.get('max_failed', 0.0)}"
    cfg = settings(
        "recipe=tiny", "label=judge", f"label.endpoints=[{endpoints}]", limit, *typed
    ).label
    return pin(cfg, folder / "cache" / "digests.json")[0]


def judged(folder: Path, candidates: Pool, *urls: str, **judge: Any) -> list[Judgement]:
    return list(
        JudgeLabeler(block(folder, *urls, **judge), work_with_calls(folder)).judge_all(candidates)
    )
