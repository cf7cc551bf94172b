"""`label=human` without a browser: questions, stored answers, rejected requests, and the judgements."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.config.blocks.labels import Human
from stages.config.errors import UserError
from stages.labelers.human import People, question_judgements
from stages.labelers.labeler import Pool
from stages.labelers.people import answer_rows, server
from stages.labelers.people.questions import Question, draw_questions
from stages.labelers.people.session import Answer, Session
from stages.store.records import Pair, load
from stages.store.workspace import StageDir
from tests.helpers import Chain, build, nodes, refused
from tests.labelers.asking import Asking, Person, asking, kept_of, somebody
from tests.rows import pool, work_with_calls

GIVEN = [[f"poor {i}", f"good {i}"] for i in range(10)]
SHARED = {"overlap": 1.0, "annotators": 2}


def good(question: dict[str, Any]) -> str:
    return "abc"[[answer["text"].startswith("good") for answer in question["answers"]].index(True)]


def judge(person: Person, most: int = 1000) -> None:
    """Prefer the good answers, and send each answer twice."""
    while most and (question := person.next()["question"]):
        for _ in range(2):
            assert person.says(question["id"], good(question), comment="clear")[0] == 200
        most -= 1


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.extended
def test_two_people_at_once_repeats_and_a_kill_save_every_answer_once(tmp_path: Path) -> None:
    three, keys = [[*texts, f"fair {i}"] for i, texts in enumerate(GIVEN)], SHARED | {"answers": 3}
    with asking(tmp_path, *three, **keys) as first:
        ann, bob = Person(first.port, "ann"), Person(first.port, "bob")
        with ThreadPoolExecutor() as threads:
            list(threads.map(judge, (ann, bob), (6, 5)))
        first.kill()
        last_row = kept_of(tmp_path, "ann")[-1]
        with open(tmp_path / "cache" / "calls" / "people" / "ann.jsonl", "a") as torn:
            torn.write('{"question": "')  # a line that a kill truncated
        second = Asking(tmp_path, first.port, **keys)
        try:
            assert "lines cannot be read" in second.log
            seen = last_row["order"].index(last_row["verdict"])
            assert ann.says(last_row["question"], "abc"[seen], comment="clear")[0] == 200
            assert ann.says(last_row["question"], "tie")[0] == 409
            with ThreadPoolExecutor() as threads:
                list(threads.map(judge, (ann, bob)))
            judged = second.judged()
        finally:
            second.kill()
    for rows in (kept_of(tmp_path, "ann"), kept_of(tmp_path, "bob")):
        assert len(rows) == len({row["question"] for row in rows}) == len(GIVEN)
        assert {row["comment"] for row in rows} == {"clear"}
    by_id = {c.candidate_id: c.text for c in pool(*three).candidates}
    assert len(judged["judgements"]) == 2 * len(GIVEN), (
        "one judgement of the best answer with each other one"
    )
    for j in judged["judgements"]:
        assert by_id[j[j["preference"]]].startswith("good")
    assert judged["figures"]["agreement"] == {"questions": len(GIVEN), "alpha": 1.0, "same": 1.0}


def test_two_people_get_different_questions_and_open_ones_are_passed_on(tmp_path: Path) -> None:
    """Two people see different questions; after one leaves, the other gets the open question."""
    session = Session(
        draw_questions(pool(*GIVEN[:3]), Human(answers=2, comparisons=1)), [], tmp_path
    )
    first, second = session.next("ann"), session.next("bob")
    assert first and second and first != second and session.next("ann") == first
    for _ in range(3):
        question = session.next("bob")
        assert question and session.save(Answer(question.id, "bob", "tie"))
    assert session.complete and session.next("ann") is None
    session.undo("bob", first.id)
    session.undo("bob", first.id)
    assert not session.complete and session.next("bob") == first
    restarted = Session([*session.questions.values()], [], tmp_path)
    assert restarted.answers == session.answers and restarted.judged == 2


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_no_two_answers_are_shown_together_twice_and_every_answer_is_shown(size: int) -> None:
    for n in range(2, 14):
        texts = [f"text {i}" for i in range(n)]
        [(_, candidates)] = pool([*texts, "text 1 "]).by_prompt()  # a copy except for a space
        questions = draw_questions(
            pool([c.text for c in candidates]), Human(answers=size, comparisons=None)
        )
        two = [
            frozenset(two)
            for q in questions
            for two in combinations((c.text.strip() for c in q.candidates), 2)
        ]
        assert len(two) == len({*two}) and all(len(each) == 2 for each in two)
        assert {text for each in two for text in each} == {*texts}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
NAMES = ("annotator", "question", "verdict", "reasons", "comment", "seconds")


@pytest.mark.extended
def test_requests_that_the_page_did_not_send_change_nothing(tmp_path: Path) -> None:
    with asking(tmp_path, *GIVEN, **SHARED) as running:
        ann = Person(running.port, "ann")
        judge(ann, 3)
        state = ann.next()
        question, last = state["question"]["id"], state["last"]
        before = everything(tmp_path / "cache")
        own_origin = f"http://127.0.0.1:{running.port}"
        right = {
            "annotator": "ann",
            "question": question,
            "verdict": "a",
            "reasons": [],
            "comment": "",
            "seconds": 1,
        }
        for status, change in (
            (400, {"verdict": "c"}),
            (400, {"verdict": "A"}),
            (400, {"reasons": ["unknown"]}),
            (400, {"reasons": "short"}),
            (400, {"reasons": [[]]}),
            (400, {"comment": "x" * 2001}),
            (400, {"seconds": float("nan")}),
            (400, {"annotator": "../ann"}),
            (400, {"annotator": ""}),
            (404, {"question": "0" * 16}),
            (404, {"question": "../../etc"}),
            (409, {"question": last, "verdict": "bad"}),
        ):
            assert ann.send("/answer", right | change)[0] == status, change
        for status, headers in (
            (403, {"Origin": "http://evil.example"}),
            (403, {"Origin": "null"}),
            (403, {"Origin": "chrome-extension://127.0.0.1:{port}"}),
            (403, {"Origin": "file://127.0.0.1:{port}"}),
            (403, {"Origin": "127.0.0.1:{port}"}),
            (403, {"Origin": ""}),
            (403, {"Origin": "http://127.0.0.1:1"}),
            (403, {"Origin": "http://127.0.0.1:{port}.evil.example"}),
            (403, {"Host": f"evil.example:{running.port}"}),
            (403, {"Host": "127.0.0.1.evil.example"}),
            (
                403,
                {
                    "Host": f"evil.example:{running.port}",
                    "Origin": f"http://evil.example:{running.port}",
                },
            ),
            (415, {"Content-Type": "text/plain"}),
            (415, {"Content-Type": "application/x-www-form-urlencoded"}),
        ):
            headers = {name: value.format(port=running.port) for name, value in headers.items()}
            assert ann.send("/answer", right, **headers)[0] == status, headers
        for status, content in (
            (400, b"{"),
            (400, b"[]"),
            (400, b"\xff"),
            (400, b"[" * 5000),
            (413, b" " * 10**6),
        ):
            assert ann.send("/answer", content)[0] == status, content[:10]
        for path in ("/undo", "/next"):
            assert ann.send(path, {"annotator": "no/body"})[0] == 400
        assert ann.send("/undo", {"question": "0" * 16})[0] == 404
        assert ann.send("/answers", right)[0] == 404
        seeded = random.Random(0)

        @settings(
            max_examples=60,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
        @given(st.dictionaries(st.sampled_from(NAMES), JSON), st.sampled_from(["/answer", "/undo"]))
        def wrong(body: dict[str, Any], path: str) -> None:
            body = {"question": question} | body if seeded.random() < 0.5 else body
            content = json.dumps({"annotator": "ann", "verdict": "?"} | body).encode()
            status, _ = ann.send(path, content)
            assert 400 <= status < 500 or (path == "/undo" and body.get("question") == question), (
                status
            )

        wrong()
        assert everything(tmp_path / "cache") == before
        assert ann.next() == state
        assert ann.send("/answer", right, Origin=own_origin)[0] == 200, (
            "the page's own request is accepted"
        )


def test_the_page_loads_nothing_and_holds_nothing_of_the_session(tmp_path: Path) -> None:
    two_prompts = pool(*GIVEN[:2])
    for candidate in two_prompts.candidates:
        candidate.policy, candidate.sampler = "some-policy", "some-sampler"
    session = Session(draw_questions(two_prompts, Human()), [], tmp_path)
    page = server.Page(session, Human(instructions="Which?"), None, server.Progress(2, "", ""))
    sent = json.dumps(page.state("ann")) + server.HTML
    hidden = [
        "some-policy",
        "some-sampler",
        *(c.candidate_id for c in two_prompts.candidates),
        "p0",
        "p1",
    ]
    assert not [each for each in hidden if each in sent]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", server.HTML.replace("<!doctype", ""))
    orders = Counter(q.order(f"person-{i}") for q in session.questions.values() for i in range(200))
    assert min(orders["ab"], orders["ba"]) > 150, "either answer may come first"


def test_questions_show_every_candidate_and_are_the_same_for_a_reduced_pool() -> None:
    several = pool(["a", "b", "c", "d", "e"], ["same", "same"], ["x", "y", "x"], ["z"])
    for keys in (
        {"answers": 2},
        {"answers": 3},
        {"answers": 6},
        {"answers": 2, "comparisons": 2},
        {"prompts": 1},
    ):
        block = Human(**{"comparisons": None, **keys})
        questions = draw_questions(several, block)
        shown_ids = {c.candidate_id for q in questions for c in q.candidates}
        assert {q.prompt.id for q in questions} <= {"p0", "p2"}, (
            "the other prompts do not have different answers"
        )
        if "comparisons" not in keys and "prompts" not in keys:
            assert sorted({c.text for q in questions for c in q.candidates}) == [*"abcdexy"]
            assert all(len({c.text for c in q.candidates}) == len(q.candidates) for q in questions)
        smaller = Pool(
            several.prompts, [c for c in several.candidates if c.candidate_id in shown_ids]
        )
        assert draw_questions(smaller, block) == questions
    every = draw_questions(several, Human(overlap=0.5, annotators=3, comparisons=None))
    assert Counter(q.needed for q in every) == {
        3: round(len(every) / 2),
        1: len(every) - round(len(every) / 2),
    }
    assert {
        q.id for q in draw_questions(several, Human(instructions="other", comparisons=None))
    }.isdisjoint(q.id for q in every)


def question() -> Question:
    [drawn] = draw_questions(pool(["x", "y", "z"]), Human(answers=3))
    return drawn


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("b", ["b", "a"]),  # of a and b, of b and c
        ("ccb", ["b", "b"]),  # of a and c, of b and c
        ("ab", ["tie", "tie"]),  # half is not a majority: of a and b, of a and c
        (["tie"], ["tie", "tie"]),
        (["bad", "bad", "a"], ["tie", "tie"]),
        (["skip", "a"], ["a", "a"]),
        (["skip"], [None, None]),
    ],
)
def test_several_people_decide_by_majority(verdicts: Any, expected: list[str | None]) -> None:
    three_answers = question()
    preferences = question_judgements(
        three_answers,
        [Answer(three_answers.id, f"person-{i}", word) for i, word in enumerate(verdicts)],
    )
    assert [j.preference for j in preferences] == expected
    assert all((j.error is None) == (j.preference is not None) for j in preferences)
    assert [json.loads(str(j.raw))["person-0"]["verdict"] for j in preferences] == [verdicts[0]] * 2


def test_the_earliest_answers_count_where_more_came_than_were_needed(tmp_path: Path) -> None:
    session = Session(draw_questions(pool(*GIVEN), Human()), [], tmp_path / "people")
    for question_id in session.questions:
        session.save(Answer(question_id, "ann", "a", at="2026-11-26T09:00:01-01:00"))
        session.save(Answer(question_id, "bob", "b", at="2026-11-26T10:00:00+00:00"))
    answer_rows.write(session, source := work_with_calls(tmp_path))
    cfg = Human(answered=str(source / answer_rows.FILE))
    judgements = list(People(cfg, source).judge_all(pool(*GIVEN)))
    assert judgements and {j.preference for j in judgements} == {"b"}


def test_exported_answers_are_read_back(tmp_path: Path) -> None:
    def session(name: str) -> Session:
        questions = draw_questions(pool(*GIVEN), Human(overlap=0.5, annotators=2))
        return Session(questions, ["clear", "short"], tmp_path / name)

    source, out = session("theirs"), work_with_calls(tmp_path)
    for i, question_id in enumerate([*source.questions][:-1]):
        for name in ("ann", "bob")[: 1 + i % 2]:
            reasons = ("clear", "short")[: i % 3]
            source.save(
                Answer(
                    question_id,
                    name,
                    ("a", "b", "tie", "bad", "skip")[i % 5],
                    reasons,
                    "so ü" * (i % 2),
                )
            )
    answer_rows.write(source, out)
    file, target = out / answer_rows.FILE, session("ours")
    assert ", 0 already stored, 1" in answer_rows.read(file, target)
    contents = [
        {
            who: {q: a.content for q, a in by_question.items()}
            for who, by_question in each.answers.items()
        }
        for each in (source, target)
    ]
    assert contents[0] == contents[1]
    before = everything(tmp_path / "ours")
    assert answer_rows.read(file, target).count(": 0 new answers") == 1, (
        "a stored answer is not stored again"
    )
    assert everything(tmp_path / "ours") == before
    lines = file.read_text().splitlines()
    for changed, reason in (
        ('{"question"', "line 3: not a row of"),
        ("[]", "line 3: not a row of"),
        (
            lines[2].replace('"verdict": "', '"verdict": "?'),
            "line 3: a verdict is one of a, b, tie, bad, skip",
        ),
        (re.sub('"annotator": "[^"]*"', '"annotator": "../x"', lines[2]), "line 3: a name is"),
        (lines[2].replace('"comment": "', '"comment": "other'), "already answered"),
        ("{}", "line 3: not a row of answers.jsonl: the field 'verdict' is missing"),
    ):
        bad, fresh = tmp_path / "bad.jsonl", session("fresh")
        bad.write_text("\n".join([*lines[:2], changed, lines[2]]))
        with pytest.raises(UserError, match=re.escape(reason)):
            answer_rows.read(bad, fresh)
        assert not fresh.answers and not [*(tmp_path / "fresh").glob("*.jsonl")], (
            "a bad file changes nothing"
        )
    bad.write_text(json.dumps(json.loads(lines[0]) | {"question": "of another run"}))
    with pytest.raises(UserError, match="all 1 "):
        answer_rows.read(bad, fresh)


def test_a_file_that_somebody_filled_in_is_never_overwritten(tmp_path: Path) -> None:
    session, out = (
        Session(draw_questions(pool(*GIVEN), Human()), [], tmp_path / "people"),
        work_with_calls(tmp_path),
    )
    answer_rows.write(session, out)
    file = out / answer_rows.FILE
    blank = file.read_text()
    answer_rows.write(session, out)
    # another node's file, from the same folder of people's answers
    (other := tmp_path / "other").mkdir()
    answer_rows.write(
        Session(draw_questions(pool(*GIVEN[:1]), Human()), [], session.folder),
        StageDir(other, print),
    )
    answer_rows.write(session, out)
    assert [path.name for path in out.path.glob("answers*")] == [file.name], (
        "its own file is written anew"
    )
    filled = blank.replace('"verdict": null', '"verdict": "a"').replace(
        '"annotator": null', '"annotator": "ann"'
    )
    file.write_text(filled)
    answer_rows.write(session, out)
    [moved] = out.path.glob("answers-*")
    assert (file.read_text(), moved.read_text()) == (blank, filled)
    assert any(str(moved) in warning for warning in out.warnings)
    answer_rows.read(moved, session)
    assert session.complete
    answer_rows.write(session, out, moved)
    file.write_text(filled)
    answer_rows.write(session, out, file)
    assert len([*out.path.glob("answers*")]) == 2, "a file whose answers are read is not kept twice"


def test_the_node_is_complete_when_its_questions_are_and_asks_nobody_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("label=human", "label.runtime.port=0", "label.comparisons=null")
    with somebody(
        monkeypatch,
        lambda question: "ab"[question["answers"][1]["text"] > question["answers"][0]["text"]],
    ) as ports:
        build(chain.root, "stage=pairs", *line)
    metrics = chain.manifest("label", *line)["metrics"]
    figures = metrics["calls"]["label.human"]
    assert (
        metrics["judgements"] == figures["questions"] == figures["answers"]["ann"] > 0
        and not metrics["failed"]
    )
    for pair in load(chain.folder("pairs", *line) / "pairs.parquet", Pair):
        assert pair.chosen[0]["content"] > pair.rejected[0]["content"]
    build(chain.root, "stage=label", *line, "rebuild=label")
    build(chain.root, "stage=label", *line, "label.overlap=0.0", "label.prompts=3")
    assert len(ports) == 1


def test_only_the_questions_change_the_fingerprint(chain: Chain) -> None:
    def fingerprint(*keys: str) -> str:
        return nodes(chain.root, "label=human", *(f"label.{key}" for key in keys))[
            "label"
        ].fingerprint

    answers_file = chain.root.parent / "answers.jsonl"
    answers_file.touch()
    assert fingerprint() == fingerprint("runtime.port=1") == fingerprint(f"answered={answers_file}")
    changed = [
        fingerprint(key)
        for key in ("instructions=other", "answers=3", "seed=1", "prompts=2", "overlap=1")
    ]
    assert len({fingerprint(), *changed}) == 6


def test_invalid_settings_are_refused_before_sampling() -> None:
    assert "label=human" in refused("recipe=tiny", "label.seed=1")
    assert "label.reasons" in refused("recipe=tiny", "label=human", "label.reasons=[a,a]")
    assert "label.answered=nowhere.jsonl: " in refused(
        "recipe=tiny", "label=human", "label.answered=nowhere.jsonl"
    )
    assert "must be from 2 to" in refused("recipe=tiny", "label=human", "label.answers=7")
