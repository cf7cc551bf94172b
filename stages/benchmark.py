"""Stage `benchmark`: one model answers tasks of lm-evaluation-harness in the template of its training.

The harness makes the prompts and scores the answers. In between, the model's contract tokenises each prompt and the
sampler of `stage=answer` answers it, so a prompt has the token ids that training gave it. A base without a chat
template is asked with the harness's plain text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.config.blocks.evaluation import Benchmark
from stages.evaluation.benchmarks import Response, SampleScore, mean_metrics, score_samples
from stages.evaluation.engine import run_engine
from stages.models.completion_scores import completion_scores, install_completion_scoring
from stages.models.contract import Continuation, Contract, PlainText, load_or_derive_contract
from stages.models.loading import load_model, read_context_length, resolve_device, sampling_weights
from stages.models.rendering import ContractError
from stages.models.scoring import batches_by_length
from stages.samplers.completions import get_sampler
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Decoding, Request
from stages.store.dropped import Dropped
from stages.store.records import Message, save
from stages.store.shards import produce_in_shards
from stages.store.workspace import StageDir


@dataclass
class Question:
    """A prompt to answer with at most `max_new_tokens` tokens, or to score with `completion_ids`, a choice's."""

    id: str
    messages: list[Message]
    prompt_ids: list[int]
    completion_ids: list[int]
    text: str = ""
    max_new_tokens: int = 0


def run(cfg: Benchmark, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `responses.parquet`, an answer per question, and `samples.parquet`, a score per prompt and metric.
    Raise UserError if the engine stops, or the model cannot read too many questions."""
    model = inputs["model"] / "model"
    contract = load_or_derive_contract(model)
    chat = not isinstance(contract, Continuation)
    contract = contract if chat else PlainText(contract.tokenizer, contract.stop_ids)
    context_length, responses = read_context_length(model), dict[str, Response]()
    dropped, unanswered = Dropped(out, "questions", cfg.max_dropped, "benchmark.max_dropped"), set[str]()

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to each question by its key: a text, or log-prob and greediness of a choice."""
        questions, replies = list[Question](), dict[str, Any]()
        for key, content in asked.items():
            replies[key] = [0.0, False] if "continuation" in content else ""  # if it is dropped
            try:
                question = read_question(key, content, contract, chat, cfg.max_new_tokens)
            except ContractError as error:
                dropped.add(key, error)
                continue
            tokens = len(question.prompt_ids) + len(question.completion_ids) + question.max_new_tokens
            if context_length and tokens > context_length:
                dropped.add(key, f"longer than the {context_length:,} tokens that the model reads", tokens)
            else:
                questions.append(question)
        unanswered.update(asked.keys() - {question.id for question in questions})
        dropped.settle(len(responses) + len(questions), len(responses) + len(questions))
        ask = partial(respond, cfg=cfg, model=model, contract=contract, out=out)
        by_id, size = lambda question: question.id, cfg.runtime.shard_size
        for response in produce_in_shards(questions, by_id, ask, Response, lambda r: r.id, size, "benchmark", out):
            responses[response.id] = response
            is_choice = "continuation" in asked[response.id]
            replies[response.id] = [response.logprob, response.is_greedy] if is_choice else response.text
        return replies

    tasks = run_engine(cfg, chat, answer, out)
    scores = [score for task in tasks for score in score_samples(task, unanswered)]
    save(out / "responses.parquet", responses.values(), Response)
    save(out / "samples.parquet", scores, SampleScore)
    by_row = dict[str, list[float]]()
    for score in scores:
        by_row.setdefault(f"{score.task} {score.metric}", []).append(score.score)
    rates = {name: fmean(of_row) for name, of_row in by_row.items()}
    no_means = [
        f"{task['task']} {name}" for task in tasks for name, is_mean in mean_metrics(task).items() if not is_mean
    ]
    if no_means:
        out.warn(f"{', '.join(no_means)}: no mean of a score from 0 to 1 per prompt, so these have no interval.")
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "form": type(contract).__name__,
        "questions": len(responses),
        "questions_dropped": dict(dropped.reasons),
        "rates": rates,
        "figures": {task["task"]: task["figures"] for task in tasks},
        "summary": f"{len(responses)} questions; " + ", ".join(f"{name} {rate:.1%}" for name, rate in rates.items()),
    }


def read_question(key: str, content: dict[str, Any], contract: Contract, chat: bool, longest: int | None) -> Question:
    """Return a question of the engine with token ids. Chat templates render a choice without white space around it.
    Raise ContractError if the contract cannot render it."""
    prompt = content["prompt"]
    messages: list[Message] = json.loads(prompt) if chat else [{"role": "user", "content": prompt}]
    if "continuation" not in content:
        limit = min(content["max_new_tokens"], longest or content["max_new_tokens"])
        return Question(key, messages, contract.prompt(messages), [], max_new_tokens=limit)
    choice = content["continuation"].strip() if chat else content["continuation"]
    ids = contract.completion(messages, [{"role": "assistant", "content": choice}])
    return Question(key, messages, *ids, choice)


def respond(
    waiting: Sequence[Question], cfg: Benchmark, model: Path, contract: Contract, out: StageDir
) -> Iterator[tuple[Question, list[Response]]]:
    """Yield each question with its response, choices first."""
    if choices := [question for question in waiting if question.completion_ids]:
        out.open_resource.clear()  # one model in memory at a time
        device = resolve_device(cfg.runtime.device)
        scorer = install_completion_scoring(load_model(model, sampling_weights(cfg.precision), device))
        rows = [(question.prompt_ids, question.completion_ids) for question in choices]
        for batch in batches_by_length([len(prompt) + len(ids) for prompt, ids in rows], None, device):
            scores = completion_scores(scorer, [rows[i] for i in batch])
            for i, (logprob, is_greedy) in zip(batch, scores, strict=True):
                yield (
                    choices[i],
                    [response_to(choices[i], choices[i].completion_ids, choices[i].text, logprob, is_greedy)],
                )
    questions = {question.id: question for question in waiting if not question.completion_ids}
    for limit in sorted({question.max_new_tokens for question in questions.values()}):
        decoding = Decoding([0.0], limit, cfg.precision, cfg.runtime, block="benchmark")
        sampler: Any = get_sampler(model, contract, decoding, HFSampler.open, out)
        asked = [question for question in questions.values() if question.max_new_tokens == limit]
        for request, [completion] in sampler.complete(
            [Request(q.id, q.messages, q.prompt_ids, [0.0], 0) for q in asked]
        ):
            ids, question = completion.token_ids, questions[request.id]
            yield question, [response_to(question, ids, contract.text(ids), completion.logprob, True)]


def response_to(question: Question, ids: list[int], text: str, logprob: float, is_greedy: bool) -> Response:
    return Response(question.id, question.messages, question.prompt_ids, ids, text, logprob, is_greedy)
