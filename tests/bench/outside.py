"""Instructions that are not ours: `python -m tests.bench.outside [OUTPUTS] [KEY=VALUE …]`.

Rotten tomatoes (sentiment), CREAK (true or false), GSM8K (the last number) and the classification tasks among
self-instruct's seeds, answered by base, SFT and DPO of a chain in OUTPUTS; nothing is trained, and the rows join
the report. Needs the shared data beside the checkout.
"""

import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers import DATA, ROOT

ROWS = 200


def lines(path: Path) -> Iterator[dict[str, Any]]:
    content = path.read_bytes()
    yield from map(
        json.loads, (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()
    )


def sets() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """Name, how an answer is compared, and (prompt, answer) of every set."""
    sentiment = {"pos": "positive", "neg": "negative"}
    reviews = [
        (
            f"Is this review positive or negative? Answer with one word.\n\n{r['text']}",
            sentiment[r["label"]],
        )
        for r in lines(DATA / "classic/rotten_tomatoes_polarity.jsonl.gz")
    ]
    claims = [
        (f"Is this claim true or false? Answer with one word.\n\n{r['sentence']}", r["label"])
        for r in lines(DATA / "classic/creak_train.jsonl.gz")
    ]
    problems = [
        (f"{r['question']} End your answer with the number.", r["answer"].split("####")[-1].strip())
        for r in lines(DATA / "benchmarks/gsm8k_train.jsonl.gz")
    ]
    seeds = [
        (f"{r['instruction']}\n\n{r['instances'][0]['input']}".strip(), r["instances"][0]["output"])
        for r in lines(DATA / "sft/self_instruct_seed_tasks.jsonl")
        if r["is_classification"]
    ]
    return {
        "rotten_tomatoes": ("label", reviews),
        "creak": ("label", claims),
        "gsm8k": ("number", problems),
        "self_instruct_classification": ("label", seeds),
    }


def main(outputs: str, overrides: list[str]) -> None:
    folder = ROOT / outputs / "cache" / "outside"
    folder.mkdir(parents=True, exist_ok=True)
    sources = []
    for name, (check, rows) in sets().items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "completion": a}) + "\n" for p, a in rows))
        sources.append(f"{{path: {path}, check: {check}, rows: {ROWS}}}")
    command = [
        sys.executable,
        "run.py",
        f"outputs={outputs}",
        f"outside=[{', '.join(sources)}]",
        *overrides,
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((ROOT / outputs / "latest/eval/results.json").read_text())
    primary = results["differences"]["policy-sft"]
    for name, row in results["groups"].items():
        rates = "  ".join(
            f"{title} {100 * row[role]['mean']:5.1f}%" for role, title in results["models"].items()
        )
        delta = row["policy-sft"]
        interval = (
            f"{100 * delta['mean']:+.1f} ({100 * delta['low']:+.1f} to {100 * delta['high']:+.1f})"
        )
        logging.info("%-45s n %4d  %s  %s %s", name, row["prompts"], rates, primary, interval)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1] if len(sys.argv) > 1 else "outputs", sys.argv[2:])
