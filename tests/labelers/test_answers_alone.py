"""Verifier, judge, reward model and lengths are equal on the same answers with and without thoughts."""

from dataclasses import replace
from itertools import chain as joined
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from stages.labelers.labeler import Pool
from stages.labelers.verifier import VerifierLabeler
from stages.models.contract import Contract, load_contract
from stages.samplers.completions import make_candidate
from stages.samplers.sampler import Completion, Request
from stages.store.records import Candidate, Example, load
from tests.endpoints.servers import Model, running
from tests.helpers import Chain
from tests.labelers.judging import judged as judged_by_server
from tests.labelers.judging import judging
from tests.labelers.test_reward_model import judged as rewarded
from tests.labelers.test_reward_model import model  # noqa: F401
from tests.store.test_thoughts import SPELLINGS

THINKING = (
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def drawn(text: str, contract: Contract, prompt: str = "p", ended: bool = True) -> Candidate:
    """Return a text as a sampled candidate of a prompt."""
    ids = contract.tokenizer(text, add_special_tokens=False).input_ids
    ids += contract.stop_ids[:1] * ended
    request = Request(prompt, [], [], [1.0], 0)
    completion = Completion(ids, "stop" if ended else "length", -1.0)
    return make_candidate(request, 0, completion, contract, "sft", "hf")


@pytest.fixture
def contract(chain: Chain) -> Contract:
    return load_contract(chain.folder("sft") / "model")


@pytest.fixture
def thinking(contract: Contract) -> Contract:
    """Return a contract whose prompts begin a thought."""
    tokenizer: PreTrainedTokenizerBase = contract.tokenizer
    tokenizer.chat_template = THINKING
    return Contract(tokenizer, contract.stop_ids)


@pytest.fixture
def pools(chain: Chain, contract: Contract) -> tuple[Pool, Pool]:
    """Return the same answers without and with thoughts, in all spellings, under the same ids."""
    folder = chain.folder("sample")
    prompts = load(folder / "prompts.parquet", Example)[:6]
    answers = {e.id: [f"{e.reference}", f"No {e.reference}, \n\n or what?"] for e in prompts}
    spellings = iter(SPELLINGS * 2)
    plain = list[Candidate]()
    thoughtful = list[Candidate]()
    for prompt, text in joined.from_iterable([(p, t) for t in ts] for p, ts in answers.items()):
        plain.append(drawn(text, contract, prompt))
        spelled = drawn(next(spellings).replace("tool", text), contract, prompt)
        thoughtful.append(replace(spelled, candidate_id=plain[-1].candidate_id))
    return Pool(prompts, plain), Pool(prompts, thoughtful)


def test_lengths_are_those_of_the_answers(pools: tuple[Pool, Pool]) -> None:
    plain, thoughtful = pools
    assert [*plain.lengths_by_prompt()] == [*thoughtful.lengths_by_prompt()]
    for alone, other in zip(plain.candidates, thoughtful.candidates, strict=True):
        assert (other.answer, other.length) == (alone.text, alone.n_tokens)
        assert other.n_tokens > other.length and other.finish_reason == "stop"
        assert other.thought == ("" if "think></" in other.text else "A thing.")


def test_checks_judges_and_rewards_are_those_of_the_answers(
    pools: tuple[Pool, Pool],
    model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    plain, thoughtful = pools
    checked, again = ([*VerifierLabeler().judge_all(pool)] for pool in pools)
    assert checked == again and len({j.score for j in checked}) > 1
    with running(Model(judging(lambda texts: "A"))) as server:
        preferences = sorted(map(str, judged_by_server(tmp_path, plain, server.url)))
        questions = len(server.requests)
        # equal questions have stored replies
        assert sorted(map(str, judged_by_server(tmp_path, thoughtful, server.url))) == preferences
        assert len(server.requests) == questions > 0
    rewards = [
        [float(str(j.raw)) for j in rewarded(model, pool, tmp_path / name)]
        for pool, name in zip(pools, ("plain", "thoughtful"), strict=True)
    ]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-5) and len({*rewards[0]}) > 1


@pytest.mark.parametrize(
    "text", ["<think>\nA thing", "[THINK]A", "<|channel|>analysis<|message|>A"]
)
def test_a_thought_that_never_ends_is_a_truncated_answer(text: str, contract: Contract) -> None:
    candidate = drawn(text, contract)
    assert (candidate.answer, candidate.length) == ("", 0)
    assert candidate.finish_reason == "length" and candidate.thought in ("A thing", "A")
    of_file = Candidate.from_text("p", text, "x", "file", 3)
    assert (of_file.finish_reason, of_file.length) == ("length", 0)


def test_a_thought_that_the_prompt_begins_has_no_mark_of_its_own(thinking: Contract) -> None:
    candidate = drawn("A thing.\n</think>\n\ntool", thinking)
    assert (candidate.answer, candidate.thought, candidate.finish_reason) == (
        "tool",
        "A thing.",
        "stop",
    )
    never_ended = drawn("A thing.", thinking)
    assert (never_ended.answer, never_ended.thought) == ("", "A thing.")
    assert never_ended.finish_reason == "length" and never_ended.length == 0
