"""Stage `benchmark`: one model answers tasks of lm-evaluation-harness in the template of its training.

The harness makes the prompts and scores the answers. In between, the model's contract tokenises each prompt and the
sampler of `stage=answer` answers it: with the token ids of training, or of plain text without a chat template."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from stages.config.choices import Forward
from stages.extras.benchmarks import Benchmark
from stages.extras.benchmarks.engine import run_engine
from stages.extras.benchmarks.responses import Response, SampleScore, mean_metrics, score_samples
from stages.models.contract import Continuation, Contract, load_or_derive_contract
from stages.models.loading import load_model, read_context_length, resolve_device, sampling_weights
from stages.models.rendering import ContractError
from stages.models.scoring import batches_by_length, completion_scores, install_scoring
from stages.samplers.completions import get_sampler
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Decoding, Request, choose_shard_size
from stages.store.dropped import Dropped
from stages.store.records import Message, save
from stages.store.shards import ShardedWork
from stages.store.workspace import StageDir


def run(cfg: Benchmark, inputs: dict[str, Path], out: StageDir) -> dict[str, Any]:
    """Publish `responses.parquet`, a response to each question, and `samples.parquet`, a score per prompt and metric.
    Raise UserError if the engine stops, or the model cannot read too many questions."""
    respondent = Respondent(cfg, inputs["model"] / "model", out)
    tasks = run_engine(cfg, respondent.in_chat_template, respondent.answer, out)
    samples = list[SampleScore]()
    for task in tasks:
        is_mean = mean_metrics(task)
        samples += score_samples(task, is_mean, respondent.responses)
        for name in is_mean:
            if not is_mean[name]:
                out.warn(
                    f"{task['task']} {name}: not a mean of scores from 0 to 1, so without an interval."
                )
    save(out / "responses.parquet", respondent.responses.values(), Response)
    save(out / "samples.parquet", samples, SampleScore)
    scores = defaultdict[str, list[float]](list)
    for sample in samples:
        scores[f"{sample.task} {sample.metric}"].append(sample.score)
    summary = f"{len(respondent.responses)} questions"
    rates = dict[str, float]()
    for task_and_metric, of_metric in scores.items():
        rates[task_and_metric] = fmean(of_metric)
        summary += f", {task_and_metric} {rates[task_and_metric]:.1%}"
    return {
        "device": str(resolve_device(cfg.runtime.device)),
        "form": type(respondent.contract).__name__,
        "questions": len(respondent.responses),
        "questions_dropped": dict(respondent.dropped.reasons),
        "rates": rates,
        "figures": {task["task"]: task["figures"] for task in tasks},
        "summary": summary,
    }


class Respondent:
    """A model that answers the engine's questions. Those that it cannot read completely are dropped."""

    def __init__(self, cfg: Benchmark, model: Path, out: StageDir):
        self.cfg = cfg
        self.model = model
        self.out = out
        self.contract: Contract = load_or_derive_contract(model)
        self.in_chat_template = not isinstance(self.contract, Continuation)
        if not self.in_chat_template:
            self.contract = PlainText(self.contract.tokenizer, self.contract.stop_ids)
        self.context_length = read_context_length(model)
        self.responses = dict[str, Response]()
        self.dropped = Dropped(out, "questions", cfg.max_dropped, "benchmark.max_dropped")

    def answer(self, engine_questions: dict[str, Any]) -> dict[str, Any]:
        """Return the answers to the engine's questions by their ids, without those that are dropped."""
        questions = list[Response]()
        for question_id, engine_question in engine_questions.items():
            question = self.tokenise(question_id, engine_question)
            if question:
                questions.append(question)
        id_of = attrgetter("id")
        device = resolve_device(self.cfg.runtime.device).type
        shard_size = choose_shard_size(self.cfg.runtime, len(questions), 1, device)
        questions_so_far = len(self.responses) + len(questions)
        self.dropped.settle(questions_so_far, questions_so_far)
        work = ShardedWork(questions, id_of, self.respond, Response, id_of, "benchmark", self.out)
        responses = {response.id: response for response in work.in_shards(shard_size)}
        self.responses |= responses
        return {question_id: response.answer for question_id, response in responses.items()}

    def tokenise(self, question_id: str, engine_question: dict[str, Any]) -> Response | None:
        """Return a question of the engine with its token ids, or None if it is dropped. In a chat template, a choice
        is the assistant's turn, without white space around it."""
        continuation = engine_question.get("continuation")
        token_limit = 0
        messages = [{"role": "user", "content": engine_question["prompt"]}]
        if self.in_chat_template:
            messages = json.loads(engine_question["prompt"])
        try:
            if continuation is None:
                token_limit = engine_question["max_new_tokens"]
                token_limit = min(token_limit, self.cfg.max_new_tokens or token_limit)
                question = Response(
                    question_id, messages, self.contract.prompt(messages), [], "", token_limit
                )
            else:
                choice = continuation.strip() if self.in_chat_template else continuation
                ids = self.contract.completion(messages, [{"role": "assistant", "content": choice}])
                question = Response(question_id, messages, *ids, choice, token_limit)
        except ContractError as error:
            self.dropped.add(question_id, error)
            return None
        most_tokens = len(question.prompt_ids) + len(question.completion_ids) + token_limit
        if self.context_length and most_tokens > self.context_length:
            self.dropped.add(
                question_id,
                f"longer than the {self.context_length:,} tokens that the model reads",
                most_tokens,
            )
            return None
        return question

    def respond(self, waiting: Sequence[Response]) -> Iterator[tuple[Response, list[Response]]]:
        """Yield each question with its response."""
        choices = list[Response]()
        by_limit = defaultdict[int, list[Response]](list)
        for question in waiting:
            of_same_kind = choices if question.is_choice else by_limit[question.max_new_tokens]
            of_same_kind.append(question)
        if choices:
            yield from self.score_choices(choices)
        for limit in sorted(by_limit):
            yield from self.generate_texts(by_limit[limit], limit)

    def score_choices(self, choices: list[Response]) -> Iterator[tuple[Response, list[Response]]]:
        """Yield each question about one choice with the log-prob of that choice."""
        self.out.open_resource.clear()  # one model in memory at a time
        device = resolve_device(self.cfg.runtime.device)
        model = load_model(self.model, sampling_weights(self.cfg.precision), device)
        scorer = install_scoring(model, Forward.padded, outputs=("log_probs", "is_top1"))
        rows = [(question.prompt_ids, question.completion_ids) for question in choices]
        tokens = [len(prompt) + len(completion) for prompt, completion in rows]
        for batch in batches_by_length(tokens, None, device):
            scores = completion_scores(scorer, [rows[i] for i in batch])
            for i, (logprob, is_greedy) in zip(batch, scores, strict=True):
                question = choices[i]
                yield question, [replace(question, logprob=logprob, is_greedy=is_greedy)]

    def generate_texts(
        self, questions: list[Response], max_new_tokens: int
    ) -> Iterator[tuple[Response, list[Response]]]:
        """Yield each question with an answer of up to `max_new_tokens` tokens."""
        decoding = Decoding(
            [0.0], max_new_tokens, self.cfg.precision, self.cfg.runtime, block="benchmark"
        )
        sampler: Any = get_sampler(self.model, self.contract, decoding, HFSampler.open, self.out)
        by_id = {question.id: question for question in questions}
        requests = [
            Request(question.id, question.messages, question.prompt_ids, [0.0], 0)
            for question in questions
        ]
        for request, [completion] in sampler.complete(requests):
            question = by_id[request.id]
            response = replace(
                question,
                completion_ids=completion.token_ids,
                text=self.contract.text(completion.token_ids),
                logprob=completion.logprob,
            )
            yield question, [response]


class PlainText(Contract):
    """The prompt format of a base without a chat template: the text of the first message, to continue."""

    def prompt(self, messages: list[Message]) -> list[int]:
        return self.tokenizer(messages[0]["content"]).input_ids  # type: ignore[no-any-return]

    def completion(
        self, prompt: list[Message], completion: list[Message], finished: bool = False
    ) -> tuple[list[int], list[int]]:
        """Return the token ids of a prompt without white space at its end, and those of the rest of the text."""
        text = prompt[0]["content"]
        ids = self.tokenizer(text + completion[0]["content"]).input_ids
        start = len(self.tokenizer(text.rstrip()).input_ids)
        return ids[:start], ids[start:]
