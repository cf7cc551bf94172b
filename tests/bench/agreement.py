"""Measure how far a judge, and length alone, agree with people: `python -m tests.bench.agreement [URL MODEL]
[rows=100] [sets=PandaLM,…]`.

Pairs of PandaLM's annotators, of LLMBar, of HH's raters and of AlpacaEval (whose labels are GPT-4's), so many of each,
drawn by content. Without a server the judge is the embedded 135M model (`tests/bench/judge.py`); its answers are kept.
Needs the shared data beside the checkout; 100 rows of each take about 45 minutes of one core.
"""

import gzip
import json
import logging
import sys
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from stages.evaluation.labelling import share
from stages.formats.transcripts import parse_transcript
from stages.store.records import Message, content_id
from tests.bench import judge
from tests.helpers import DATA

ROWS = 100


class Known(NamedTuple):
    """Two answers of which the first is known to be better."""

    messages: list[Message]
    better: str
    worse: str


def lines(name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(DATA / "preferences" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def comparison(request: str, first: str, second: str, first_is_better: bool) -> Known:
    better, worse = (first, second) if first_is_better else (second, first)
    return Known([{"role": "user", "content": request}], better, worse)


def pandalm() -> list[Known]:
    """By the majority of three annotators; their ties are left out."""
    return [
        comparison(
            f"{r['instruction']}\n\n{r['input']}".strip(),
            r["response_1"],
            r["response_2"],
            r["majority"] == 1,
        )
        for r in lines("pandalm_human_pairs_shared")
        if r["majority"]
    ]


def llmbar(subset: str) -> list[Known]:
    rows = [r for r in lines("llmbar_natural_neighbor") if r["subset"].endswith(subset)]
    return [comparison(r["input"], r["output_1"], r["output_2"], r["label"] == 1) for r in rows]


def hh() -> list[Known]:
    """Conversations whose last answer differs; the few that part earlier are left out."""
    rows = [
        (parse_transcript(r["chosen"]) or [], parse_transcript(r["rejected"]) or [])
        for r in lines("hh_helpful_base_test")
    ]
    return [
        Known(chosen[:-1], chosen[-1]["content"], rejected[-1]["content"])
        for chosen, rejected in rows
        if chosen and chosen[:-1] == rejected[:-1]
    ]


def alpaca_eval() -> list[Known]:
    """Every model against the reference model; ties are left out."""
    return [
        comparison(
            r["instruction"],
            c["output"],
            r["reference_output"],
            c["gpt4_vs_reference"] == "candidate",
        )
        for r in lines("alpaca_eval_candidates_shared")
        for c in r["candidates"]
        if c["gpt4_vs_reference"] in ("candidate", "reference")
    ]


SETS = {
    "PandaLM": pandalm,
    "LLMBar Natural": lambda: llmbar("Natural"),
    "LLMBar Neighbor": lambda: llmbar("Neighbor"),
    "HH helpful": hh,
    "AlpacaEval": alpaca_eval,
}


def longer(rows: list[Known]) -> float:
    """The share of pairs whose better answer is the longer one, in characters; equal lengths count half."""
    return fmean(length_order(len(row.better), len(row.worse)) for row in rows)


def length_order(better: int, worse: int) -> float:
    if better == worse:
        return 0.5
    return float(better > worse)


def tell(name: str, rows: list[Known], named_judge: judge.Named) -> None:
    """Judge the rows and tell the figures. A hash of the content decides which answer comes first."""
    candidate_pool = judge.pool(rows)
    judgements = judge.judge_pool(candidate_pool, named_judge)
    verdicts = judge.verdicts_of(candidate_pool, judgements)
    right = list[bool]()
    prompts = list[str]()
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict in (0, 1):
            right.append(verdict == 0)
            prompts.append(content_id(row.messages))
    logging.info("%s: %d pairs, the longer wins %.1f%%", name, len(rows), 100 * longer(rows))
    rate = share(right, prompts)
    if rate:
        bounds = f"{rate.rate.mean:.1%} ({rate.rate.low:.1%} to {rate.rate.high:.1%})"
        logging.info("    right in %s of %d that it decides", bounds, len(right))
    turned = [not j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    logging.info("    another order changes %d of %d", sum(turned), len(turned))
    logging.info("    %d ties, %d missing", verdicts.count("tie"), verdicts.count(None))


def main(words: list[str], rows: int, names: list[str]) -> None:
    with judge.serving(words) as named_judge:
        for name in names:
            tell(name, sorted(SETS[name](), key=content_id)[:rows], named_judge)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    set_names = options.get("sets", ",".join(SETS)).split(",")
    server = [word for word in sys.argv[1:] if "=" not in word]
    main(server, int(options.get("rows", ROWS)), set_names)
