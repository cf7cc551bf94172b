"""An engine of benchmarks in a few lines, which speaks as `lm_eval_driver.py` does, for tests without lm-eval."""

import json
import sys
from pathlib import Path


def send(message: object) -> None:
    sys.stdout.write(f"{json.dumps(message)}\n")
    sys.stdout.flush()


def main() -> None:
    if "-c" in sys.argv:
        sys.stdout.write("0.0.1")  # the version
        return
    job = json.loads(sys.stdin.readline())
    rows = {
        task: [*map(json.loads, Path(f"{task}.jsonl").read_text().splitlines())]
        for task in job["tasks"]
    }
    for task in rows:
        if not rows[task]:
            send({"error": f"{task} has no rows"})
            sys.exit(1)
    questions = {}
    for task in rows:
        for i, row in enumerate(rows[task][: job["limit"]]):
            messages = json.dumps([{"role": "user", "content": row["question"]}])
            prompt = messages if job["chat"] else row["question"]
            for j, choice in enumerate(row.get("choices", ())):
                questions[f"{task} {i} {j}"] = {"prompt": prompt, "continuation": f" {choice}"}
            if "choices" not in row:
                questions[f"{task} {i} 0"] = {"prompt": prompt, "max_new_tokens": 24}
    send({"questions": questions})
    answers = json.loads(sys.stdin.readline())
    for task in rows:
        samples = []
        for i, row in enumerate(rows[task][: job["limit"]]):
            keys = [f"{task} {i} {j}" for j in range(len(row.get("choices", "1")))]
            responses = [answers.get(key) for key in keys]
            if "choices" in row:
                best = max(range(len(keys)), key=lambda j: (responses[j] or [0])[0])
                scores = {"acc": float(best == row["label"])}
            else:
                scores = {
                    "exact_match": float((responses[0] or "").strip() == row["answer"]),
                    "words": None,
                }
            samples.append({"doc_hash": str(i), "doc_id": i, "questions": keys, "scores": scores})
        name = "acc" if "acc" in samples[0]["scores"] else "exact_match"
        figures = {name: sum(sample["scores"][name] for sample in samples) / len(samples)}
        message = {"task": task, "benchmark": task, "samples": samples, "figures": figures}
        send(message | {"less_is_better": rows[task][0].get("less_is_better", [])})


if __name__ == "__main__":
    main()
