"""The engine of benchmarks as a program: tasks, examples, filters and metrics of lm-evaluation-harness.

It runs under `benchmark.runtime.python`, so it imports nothing of this project, and it holds no model. It reads a job
from its input. To its output it writes the questions of the tasks, all of a kind in one line, and for each such line
it reads a line with the answers. The last lines are the samples with their scores, a line per task."""

import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

# the first that a task sets
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_LENGTH = 256  # tokens, as the harness generates without such a setting


class OtherProgram:
    """A model that another program tokenises for and runs. Questions that it cannot read get an empty answer."""

    tokenizer_name = ""

    def __init__(self, channel: TextIO):
        super().__init__()
        self.channel = channel

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the messages as JSON: the other program renders them."""
        if not add_generation_prompt:
            raise ValueError(
                "a task begins the assistant's answer (gen_prefix), which no training's prompt does"
            )
        return json.dumps(chat_history)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return greedy answers, cut at the first of the strings that end an answer of the task."""
        options = [request.args[1] for request in requests]
        if any(each.get("do_sample") and each.get("temperature", 1) for each in options):
            raise ValueError(
                "a task samples its answers (do_sample), and here all answers are greedy"
            )
        answers = zip(self.ask(requests), requests, strict=True)
        return [cut(text or "", request.args[1].get("until") or []) for text, request in answers]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return the log-prob of each continuation, and whether each of its tokens is the likeliest one."""
        return [tuple(scores or (0.0, False)) for scores in self.ask(requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise ValueError(
            "a task scores running text without a prompt; eval.retention=[{path: FILE}] does this"
        )

    def ask(self, requests: list[Any]) -> list[Any]:
        """Return the answers of the other program, in order."""
        keyed = [(key_of(request.args), request.args) for request in requests]
        send(self.channel, {"questions": {key: question_of(arguments) for key, arguments in keyed}})
        answers = json.loads(sys.stdin.readline())
        return [answers.get(key) for key, _ in keyed]


def question_of(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return a request's prompt and either its continuation or the length of its answer."""
    prompt, rest = arguments
    if not prompt:
        raise ValueError(
            "a task scores choices without a prompt (its doc_to_text is empty, or acc_mutual_info)"
        )
    if isinstance(rest, str):
        return {"prompt": prompt, "continuation": rest}
    length = next((rest[name] for name in LENGTHS if rest.get(name)), DEFAULT_LENGTH)
    return {"prompt": prompt, "max_new_tokens": int(length)}


def key_of(arguments: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(question_of(arguments)).encode()).hexdigest()[:16]


def cut(text: str, stops: str | list[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


def evaluate(job: dict[str, Any], channel: TextIO) -> dict[str, Any]:
    """Return the harness's results. Its own task files, which take seconds, are read only if a task needs them."""
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    folder, chat = job["tasks_dir"], job["chat"]
    own = (
        {*TaskManager(include_path=folder, include_defaults=False).task_index}
        if folder
        else set[str]()
    )
    options = {
        "limit": job["limit"],
        "bootstrap_iters": 0,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat,
    }
    options["task_manager"] = TaskManager(
        include_path=folder, include_defaults=not own >= {*job["tasks"]}
    )
    model = type("Model", (OtherProgram, LM), {})(channel)
    return lm_eval.simple_evaluate(model, tasks=job["tasks"], **options)  # type: ignore[no-any-return]


def sample_of(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a scored prompt with the keys of its questions, and the scores that are numbers."""
    suffix = "" if sample["filter"] == "none" else f", {sample['filter']}"
    scores = {f"{name}{suffix}": as_number(sample[name]) for name in sample["metrics"]}
    questions = [key_of(arguments) for arguments in sample["arguments"]]
    return {
        "doc_hash": sample["doc_hash"],
        "doc_id": sample["doc_id"],
        "questions": questions,
        "scores": scores,
    }


def tasks_of(name: str, parts: dict[str, list[str]]) -> Iterator[str]:
    """Yield the tasks of a group and of the groups in it, or the task itself. `parts`: by name, those of a group."""
    if not parts.get(name):
        yield name
    for part in parts.get(name, []):
        yield from tasks_of(part, parts)


def as_number(score: Any) -> float | None:
    score = score.item() if hasattr(score, "item") else score
    return float(score) if isinstance(score, bool | int | float) else None


def send(channel: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=channel, flush=True)


def main() -> None:
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # the harness prints: only messages may reach the output
    job = json.loads(sys.stdin.readline())
    try:
        results = evaluate(job, channel)
    except Exception as error:
        traceback.print_exc()
        send(channel, {"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    parts = results.get("group_subtasks", {})
    benchmarks = {task: name for name in job["tasks"] for task in tasks_of(name, parts)}
    for task, samples in results["samples"].items():
        figures = {
            name.replace(",none", "").replace(",", ", "): v
            for name, v in results["results"][task].items()
        }
        message = {"task": task, "benchmark": benchmarks.get(task, task), "figures": figures}
        directions = results["higher_is_better"].get(task, {})
        message["less_is_better"] = [
            metric for metric, higher in directions.items() if higher is False
        ]
        send(channel, message | {"samples": [*map(sample_of, samples)]})


if __name__ == "__main__":
    main()
