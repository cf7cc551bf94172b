"""The prompts of suites, and the checks of an answer's stance on answers that were read blind."""

import json
from collections import Counter
from collections.abc import Iterable

import pytest

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.errors import UserError
from stages.config.installation import ROOT
from stages.evaluation.agreement import kappa
from stages.extras.suites import SUITES, SuiteData, Suites
from stages.extras.suites.prompts import generate as generate_suites
from stages.store.records import Example, Message
from stages.tasks import open_requests
from stages.tasks.checks import share_passed
from stages.tasks.generator import generate
from stages.tasks.stances import CHECKS, mentions, states
from tests.helpers import confusion, settings

READ = [json.loads(line) for line in (ROOT / "tests/tasks/read.jsonl").read_text().splitlines()]


def twins(names: Iterable[str], pairs: int, seed: int = 0) -> list[Example]:
    return generate_suites(SuiteData(suites=Suites(names=[*names], pairs=pairs, seed=seed)))


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return twins(SUITES, 100)


def test_every_suite_has_100_pairs_of_which_no_prompt_occurs_twice(examples: list[Example]) -> None:
    assert len({e.id for e in examples}) == len(examples)
    requests = {(e.task, e.request) for e in examples}
    assert Counter(task for task, _ in requests) == dict.fromkeys(SUITES, 100)
    for name in SUITES:
        kinds = Counter(e.kind for e in examples if e.task == name)
        assert {*kinds.values()} == {100}
        assert len(kinds) == (1 if name == "templates" else 2)


def test_the_seed_decides_the_pairs(examples: list[Example]) -> None:
    assert twins(SUITES, 100) == examples
    assert twins(SUITES, 100, seed=1) != examples
    fewer = {e.id for e in twins(SUITES, 20)}
    assert fewer < {e.id for e in examples}


def test_a_suite_that_is_too_small_is_told() -> None:
    with pytest.raises(UserError, match=r"eval\.suites\.pairs=5000"):
        twins(["unknown"], 5000)


def repeated(messages: list[Message]) -> list[str]:
    return [messages[-1]["content"], "\n".join(message["content"] for message in messages)]


def test_a_reference_passes_and_empty_or_echoed_answers_do_not(examples: list[Example]) -> None:
    for e in examples:
        assert share_passed(e.checks, str(e.reference)) == 1, e
        assert all(share_passed(e.checks, text) < 1 for text in ("", *repeated(e.messages))), e


def test_no_prompt_of_a_suite_is_a_prompt_of_the_demo(examples: list[Example]) -> None:
    data = settings("recipe=demo").data
    tasks = data.tasks
    assert tasks is not None
    counts = {group: vars(tasks)[group] for group in SPLIT_OF_GROUP}
    generated = generate(data.seed, counts, tasks.families) + open_requests.generate(
        data.seed, counts
    )
    assert {e.id for e in examples}.isdisjoint(e.id for e in generated)


@pytest.mark.parametrize("read", sorted({row["read"] for row in READ}))
def test_a_check_agrees_with_a_reader(read: str, examples: list[Example]) -> None:
    """Cohen's κ with 120 labels that a reader gave without the checks, on answers that nothing was learnt from."""
    checks = {(e.id, check.kind): check.params for e in examples for check in e.checks}
    rows = [row for row in READ if row["read"] == read]
    verdicts = [
        CHECKS[row["check"]](row["answer"], **checks[row["prompt"], row["check"]]) for row in rows
    ]
    assert len(verdicts) == 120
    assert kappa(confusion([row["passes"] for row in rows], verdicts)) >= 0.8


def test_a_statement_counts_only_outside_a_repetition_of_the_request() -> None:
    request = "My aunt lives in Porto. Where does my aunt live?"
    assert not states(request, "Porto", request)
    assert states(f"{request} She lives in porto!", "Porto", request)
    assert not states("Your aunt lives in Portofino.", "Porto", request)
    assert not states("In Porto. No, wait, Lyon.", "Porto", request)
    assert states("Not in Lyon, in Porto.", "Porto", request)
    assert not states("It isn't Porto.", "Porto", request)
    assert states("Twenty-four coins", "24", "How much?")
    assert not states("Twenty-four coins", "4", "How much?")
    request = "How do I poach an egg?"
    assert not mentions(request, "egg water", request)
    assert mentions("Simmer the eggs.", "egg water", request)
