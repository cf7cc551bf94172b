"""`label=judge`: both orders, several judges, and missing judgements with their reasons."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.config.choices import Reading, Rubrics
from stages.config.errors import UserError
from stages.endpoints.reply import Reply
from stages.labelers.verdicts import ALLOWED, KEY, NoVerdict, verdict
from stages.store.records import Pair, load
from tests.endpoints.servers import Model, Proxy, Request, running
from tests.helpers import TINY, Chain, build, nodes, refused
from tests.labelers.judging import (
    PROBE,
    better,
    greater,
    is_probe,
    judged,
    judging,
    quality,
    shown_texts,
)
from tests.rows import pool

pytest.importorskip("openai")
ANSWERS = [
    ["poor 1", "fair 2", "good 3", "fair 2"],
    ["good 9", "poor 0"],
    ["same 5", "same 5"],
    ["alone 1"],
]


def test_every_judgement_is_there_and_right_whatever_fails_on_the_way(tmp_path: Path) -> None:
    several = pool(*ANSWERS)
    texts = {c.candidate_id: c.text for c in several.candidates}
    faults = ("429", "500", "cut", "malformed", "empty", "no completion")
    with running(Model(judging(better))) as model, running(Proxy(model, 0.2, 0.0, faults)) as proxy:
        judgements = judged(tmp_path, several, proxy.url)
        assert len(judgements) == 6 + 1 + 1
        for j in judgements:
            a = texts[str(j.a)]
            b = texts[str(j.b)]
            assert j.error is None
            expected = {0: "tie", 1: "a", -1: "b"}
            difference = quality(a) - quality(b)
            assert j.preference == expected[(difference > 0) - (difference < 0)]
            assert j.order_swapped_agrees or a == b
        questions = {json.dumps(r["messages"]) for r in model.requests}
        # The first prompt has two equal texts and the last only equal ones; the probe is one more question.
        assert len(questions) == 1 + 2 * (3 + 1)
        before = len(model.requests)
        repeated = judged(tmp_path, several, proxy.url)
        assert sorted(map(str, repeated)) == sorted(map(str, judgements))
        assert len(model.requests) == before


def test_a_judge_that_goes_by_the_order_sees_only_ties(tmp_path: Path) -> None:
    with running(Model(judging(lambda texts: "A"))) as model:
        judgements = judged(tmp_path, pool(["poor 1", "good 2"]), model.url)
    assert [(j.preference, j.order_swapped_agrees) for j in judgements] == [("tie", False)]


REPLIES = {
    "the judge's reply is not JSON": "A is better, 10 of 10",
    "the judge's reply is not an object with the single key verdict": '{"verdict": "A", "verdict": "B"}',
    "the judge's reply has a verdict that is not allowed": '{"verdict": "C"}',
}


@pytest.mark.parametrize(("reason", "reply"), REPLIES.items())
def test_what_is_no_verdict_is_missing_with_its_reason_after_another_attempt(
    reason: str, reply: str, tmp_path: Path
) -> None:
    with running(Model(lambda r: PROBE if is_probe(r) else reply)) as model:
        judgements = judged(
            tmp_path, pool(["poor 1", "good 2"]), model.url, max_failed=1.0, attempts=3
        )
        assert [j.error for j in judgements] == [reason] and judgements[0].preference is None
        assert len(model.requests) == 1 + 2 * 3, "the probe, and three attempts in each order"


HARSH = {"better": 4, "worse": "none", "other": 2}
MILD = {"better": 9, "worse": 8, "other": 7}


def scoring(score_of: dict[str, object]) -> Model:
    """Return a server that scores answers by their first word."""
    return Model(judging(lambda texts: score_of[texts["ANSWER"].split()[0]], "score"))


def test_a_judge_that_fails_on_one_answer_does_not_raise_its_mean(tmp_path: Path) -> None:
    """Each score of a prompt is the mean of the same judges; of another prompt all judges count."""
    several = pool(["better 1", "worse 2"], ["other 3", "other 4"])
    by_id = {c.candidate_id: c.text for c in several.candidates}
    with running(scoring(HARSH)) as harsh, running(scoring(MILD)) as mild:
        urls = (harsh.url, mild.url, mild.url)
        judgements = judged(tmp_path, several, *urls, kind="pointwise", max_failed=0.25, attempts=1)
        score_of = {by_id[str(j.candidate_id)]: j.score for j in judgements}
        assert score_of["better 1"] == pytest.approx(8 / 9)
        assert score_of["worse 2"] == pytest.approx(7 / 9)
        assert score_of["other 3"] == pytest.approx((1 + 6 + 6) / 27)
        with pytest.raises(UserError, match=r"^label\.max_failed=0\.1: 1 of 4 "):
            judged(tmp_path, several, *urls, kind="pointwise", max_failed=0.1, attempts=1)


def test_an_answer_without_a_judges_score_is_missing_where_no_majority_scored_all(
    tmp_path: Path,
) -> None:
    several = pool(["better 1", "worse 2", "other 3"])
    by_id = {c.candidate_id: c.text for c in several.candidates}
    fails_on_other = {**MILD, "other": "none"}
    with (
        running(scoring(HARSH)) as harsh,
        running(scoring(fails_on_other)) as other,
        running(scoring(MILD)) as mild,
    ):
        urls = (harsh.url, other.url, mild.url)
        judgements = judged(tmp_path, several, *urls, kind="pointwise", max_failed=1.0, attempts=1)
    missing = {by_id[str(j.candidate_id)] for j in judgements if j.error}
    assert missing == {"worse 2", "other 3"}


def test_too_many_missing_judgements_stop_the_run_early(tmp_path: Path) -> None:
    many = pool(*([f"poor {i}", f"good {i + 1}"] for i in range(100)))
    with running(Model(lambda r: PROBE if is_probe(r) else "I cannot choose.")) as model:
        with pytest.raises(UserError, match=r"^label\.max_failed=0\.1: 11 of 100 "):
            judged(tmp_path, many, model.url, max_failed=0.1, attempts=1)
        assert len(model.requests) < 1 + 2 * (11 + 2 * 8)


def test_a_server_that_ignores_schemas_is_refused_and_may_be_read_as_text(tmp_path: Path) -> None:
    def says(request: Request) -> str:
        texts = dict.fromkeys("AB", "answer 0") if is_probe(request) else shown_texts(request)
        return f"Both have merits.\n**Verdict: {better(texts)}**"

    with running(Model(says)) as model:
        with pytest.raises(UserError, match=r"json_schema .*label.reading=text"):
            judged(tmp_path, pool(["poor 1", "good 2"]), model.url)
        assert len(model.requests) == 2
        judgements = judged(tmp_path, pool(["poor 1", "good 2"]), model.url, reading="text")
        assert judgements[0].error is None and judgements[0].order_swapped_agrees
        assert "response_format" not in model.requests[-1]
        model.says = judging(better)  # another server at the same address
        assert judged(tmp_path, pool(["poor 1", "good 2"]), model.url)[0].error is None


QUOTA = "You exceeded your current quota, please check your plan. " * 5 + "insufficient_quota"
LONG = "This model's maximum context length is 16 tokens, and you requested 90"
MODEL = "The model `judge` does not exist"
# The first answer of a server: its status and its words, and the way out
FIRST_ANSWERS = [
    (429, "Rate limit reached", "label.endpoints[0].runtime.requests_per_minute"),
    (503, "no slot available", "label.endpoints[0].runtime.requests_per_minute"),
    (529, "Overloaded", "label.endpoints[0].runtime.requests_per_minute"),
    (429, QUOTA, "Pay there"),
    (402, "", "Pay there"),
    (400, "Your credit balance is too low to access the API", "Pay there"),
    (401, "{key} is wrong", "label.endpoints[0].api_key_env=NAME"),
    (403, "", "label.endpoints[0].api_key_env=NAME"),
    (400, "API key not valid. Please pass a valid API key.", "label.endpoints[0].api_key_env=NAME"),
    (404, MODEL, "label.endpoints[0].model"),
    (400, MODEL, "label.endpoints[0].model"),
    (413, "", "the prompt is too long for the model (HTTP 413)"),
    (400, LONG, "the prompt is too long for the model (HTTP 400)"),
    (500, "<html>oops</html>", "HTTP 500. Remove the cause"),
    (502, "", "HTTP 502. Remove the cause"),
]


@pytest.mark.parametrize(("status", "text", "way_out"), FIRST_ANSWERS)
def test_the_first_refusal_of_a_server_leads_to_its_own_way_out(
    status: int, text: str, way_out: str, tmp_path: Path
) -> None:
    with running(Model(judging(better), status=status)) as model:
        model.refusal = text
        model.retry_after = "0"
        with pytest.raises(UserError) as error:
            judged(tmp_path, pool(["poor 1", "good 2"]), model.url, retries=2)
    assert way_out in str(error.value) and "label.reading" not in str(error.value)


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_server_that_is_busy_at_first_is_waited_for(status: int, tmp_path: Path) -> None:
    with running(Model(judging(better), status=status)) as model:
        model.refused_requests = 2
        model.retry_after = "0.01"
        judgements = judged(tmp_path, pool(["poor 1", "good 2"]), model.url)
    assert [j.error for j in judgements] == [None] and len(model.requests) == 3 + 2


def test_a_server_that_takes_no_schema_may_be_read_as_text(tmp_path: Path) -> None:
    with running(Model(judging(better), status=400)) as model:
        model.refusal = "This model does not support response_format json_schema"
        with pytest.raises(UserError, match=r"label\.reading=text"):
            judged(tmp_path, pool(["poor 1", "good 2"]), model.url)


TEXT = st.text(alphabet=st.characters(codec=None)) | st.sampled_from(
    ['{"verdict": "A"}', "Verdict: A", "score: 7"]
)
VALUE = st.sampled_from(["A", "B", "tie", "a", "C", 1, 10, 0, 11, 1.0, True, None, [], "7"])
OBJECT = st.dictionaries(st.sampled_from(["verdict", "score", "reason"]), VALUE, max_size=2).map(
    json.dumps
)
SAID = st.one_of(
    TEXT,
    OBJECT,
    st.tuples(TEXT, OBJECT).map("".join),
    st.tuples(TEXT, st.just("\nVerdict: B")).map("".join),
)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(
    SAID,
    st.sampled_from(["stop", "length", "refusal", "eos"]),
    st.sampled_from(list(Rubrics)),
    st.sampled_from(list(Reading)),
)
def test_no_reply_is_a_traceback_and_no_verdict_is_invented(
    text: str, finish: str, kind: Rubrics, reading: Reading
) -> None:
    try:
        judgements = verdict(Reply(text, finish), kind, reading)
    except NoVerdict as error:
        assert str(error)
        return
    assert finish == "stop"
    assert judgements in ALLOWED[kind] and type(judgements) is type(ALLOWED[kind][0])
    if reading is Reading.json:
        assert json.loads(text) == {KEY[kind]: judgements}
    else:
        assert (
            text.rstrip(" \n*_`.\t\r").endswith(f"{KEY[kind].title()}: {judgements}")
            or not text.isascii()
        )


def asking(url: str, *overrides: str) -> tuple[str, ...]:
    return (
        "label=judge",
        f"label.endpoints=[{{base_url: '{url}', model: judge}}]",
        *overrides,
    )


def test_judgements_become_pairs_and_another_strategy_asks_nothing(chain: Chain) -> None:
    def last_letter(texts: dict[str, str]) -> str:
        return greater(texts["A"], texts["B"])

    with running(Model(judging(last_letter))) as model:
        line = asking(model.url)
        build(chain.root, "stage=pairs", *line)
        before = len(model.requests)
        metrics = chain.manifest("label", *line)["metrics"]
        assert metrics["calls"]["label.endpoints[0]"]["made"] == before
        assert metrics["order_flips"] == 0 and not metrics["failed"]
        for pair in load(chain.folder("pairs", *line) / "pairs.parquet", Pair):
            assert pair.chosen[0]["content"] > pair.rejected[0]["content"]
        build(chain.root, "stage=pairs", *line, "pairs=all")
        build(chain.root, "stage=label", *line, "rebuild=label")
        assert len(model.requests) == before


def test_the_question_makes_the_fingerprint(chain: Chain, tmp_path: Path) -> None:
    def fingerprint(*overrides: str) -> str:
        return nodes(chain.root, *asking("http://127.0.0.1:1/v1", *overrides))["label"].fingerprint

    plain = fingerprint()
    mine = tmp_path / "mine.jinja"
    label = nodes(chain.root, *asking("http://127.0.0.1:1/v1"))["label"]
    rubric = Path(label.config.rubric).read_text()
    mine.write_text(rubric)
    assert fingerprint(f"label.rubric={mine}") == plain, "the rubric's path does not count"
    mine.write_text(rubric.replace("better", "worse"))
    for other in (f"rubric={mine}", "seed=1", "kind=pointwise", "comparisons=3"):
        assert fingerprint(f"label.{other}") != plain


@pytest.mark.parametrize(
    ("rubric", "message"),
    [
        ("{{ request }} {{ a }}", "Add {{ b }}"),
        (
            "{{ request }} {{ a }}\n{{ b }} {{ c }}",
            "'c' is undefined. It may read request, a, b and reply",
        ),
        ("{{ request }}\n{% if %}", "line 2: TemplateSyntaxError"),
    ],
)
def test_an_unusable_rubric_is_refused_before_the_run(
    rubric: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(rubric)
    rubric_of_mine = f"label.rubric={file}"
    line = refused(
        *TINY, f"outputs={tmp_path / 'outputs'}", *asking("http://127.0.0.1:1/v1", rubric_of_mine)
    )
    assert line.startswith(rubric_of_mine)
    assert message in line
