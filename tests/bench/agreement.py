"""Measure how far a judge, and length alone, agree with people: `python -m tests.bench.agreement [URL MODEL]
[rows=100] [sets=PandaLM,…] [threads=1]`.

Pairs of PandaLM's annotators, of LLMBar, of HH's raters and of AlpacaEval (whose labels are GPT-4's), so many of each,
drawn by content. Without a server the judge is the embedded 135M model (`tests/bench/judge.py`); its answers are kept.
Needs the shared data beside the checkout; 100 rows of each take about 45 minutes of one core.
"""

import gzip
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from stages.evaluation.agreement import share as independent
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
    return sum(
        (len(r.better) > len(r.worse)) + (len(r.better) == len(r.worse)) / 2 for r in rows
    ) / len(rows)


def measure_agreement(rows: list[Known], named_judge: judge.Named) -> Mapping[str, str]:
    """Judge the rows and return the figures as text. A hash of the content decides which answer comes first."""
    candidate_pool = judge.pool(rows)
    judgements = judge.judge_pool(candidate_pool, named_judge)
    verdicts = judge.verdicts_of(candidate_pool, judgements)
    decided = [
        (answer == 0, content_id(row.messages))
        for answer, row in zip(verdicts, rows, strict=True)
        if answer in (0, 1)
    ]
    right = share([hit for hit, _ in decided], [prompt for _, prompt in decided])
    flips = [not j.order_swapped_agrees for j in judgements if j.order_swapped_agrees is not None]
    hits = sum(hit for hit, _ in decided) + verdicts.count("tie") / 2
    turned = independent(sum(flips), len(flips)) if flips else None
    return {
        "missing": str(verdicts.count(None)),
        "order changes it": f"{turned.mean:.0%} ({turned.low:.0%} to {turned.high:.0%})"
        if turned
        else "-",
        "decides": str(len(decided)),
        "right of these": f"{right.rate.mean:.1%} ({right.rate.low:.1%} to {right.rate.high:.1%})"
        if right
        else "-",
        "right, ties half": f"{hits / max(1, len(verdicts)):.1%}",
    }


def main(words: list[str], rows: int, names: list[str], threads: int) -> None:
    with judge.serving(words, threads) as named_judge:
        for name in names:
            whole = SETS[name]()
            drawn = sorted(whole, key=content_id)[:rows]
            cells = measure_agreement(drawn, named_judge)
            logging.info(
                "%-16s %4d of %4d  the longer wins %.1f%% (of all %.1f%%)  %s",
                name,
                len(drawn),
                len(whole),
                100 * longer(drawn),
                100 * longer(whole),
                "  ".join(f"{what} {figure}" for what, figure in cells.items()),
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    arguments = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    set_names = arguments.get("sets", ",".join(SETS)).split(",")
    served = [word for word in sys.argv[1:] if "=" not in word]
    main(served, int(arguments.get("rows", ROWS)), set_names, int(arguments.get("threads", 1)))
