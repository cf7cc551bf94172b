"""`label=human` without a browser: what is asked and of whom, what is kept, who is turned away, what comes of it."""

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
from stages.labelers.human import question_judgements
from stages.labelers.labeler import Pool
from stages.labelers.people import answer_rows, server
from stages.labelers.people.questions import Question, draw_questions
from stages.labelers.people.session import Answer, Session
from stages.store.records import Pair, load
from tests.helpers import Chain, build, nodes, refused
from tests.labelers.asking import Asking, Person, asking, kept_of, somebody
from tests.labelers.pools import pool, work

GIVEN = [[f"poor {i}", f"good {i}"] for i in range(10)]
SHARED = {"overlap": 1.0, "annotators": 2}


def good(question: dict[str, Any]) -> str:
    return "abc"[[answer["text"].startswith("good") for answer in question["answers"]].index(True)]


def judge(person: Person, most: int = 1000) -> None:
    """Say what is good, and every word of it twice."""
    while most and (question := person.next()["question"]):
        for _ in range(2):
            assert person.says(question["id"], good(question), comment="clear")[0] == 200
        most -= 1


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_people_at_once_repeats_and_a_kill_save_every_answer_once(tmp_path: Path) -> None:
    three, keys = [[*texts, f"fair {i}"] for i, texts in enumerate(GIVEN)], SHARED | {"answers": 3}
    with asking(tmp_path, *three, **keys) as first:
        ann, bob = Person(first.port, "ann"), Person(first.port, "bob")
        with ThreadPoolExecutor() as threads:
            list(threads.map(judge, (ann, bob), (6, 5)))
        first.kill()
        kept = kept_of(tmp_path, "ann")[-1]
        with open(tmp_path / "cache" / "calls" / "people" / "ann.jsonl", "a") as torn:
            torn.write('{"question": "')  # as a kill in the middle of a line leaves it
        second = Asking(tmp_path, first.port, **keys)
        try:
            assert "lines cannot be read" in second.told
            seen = kept["order"].index(kept["verdict"])
            assert ann.says(kept["question"], "abc"[seen], comment="clear")[0] == 200
            assert ann.says(kept["question"], "tie")[0] == 409
            with ThreadPoolExecutor() as threads:
                list(threads.map(judge, (ann, bob)))
            judged = second.judged()
        finally:
            second.kill()
    for said in (kept_of(tmp_path, "ann"), kept_of(tmp_path, "bob")):
        assert len(said) == len({row["question"] for row in said}) == len(GIVEN)
        assert {row["comment"] for row in said} == {"clear"}
    by_id = {c.candidate_id: c.text for c in pool(*three).candidates}
    assert len(judged["judgements"]) == 2 * len(GIVEN), "the best against each of the others"
    for j in judged["judgements"]:
        assert by_id[j[j["preference"]]].startswith("good")
    assert judged["figures"]["agreement"] == {"questions": len(GIVEN), "alpha": 1.0, "same": 1.0}


def test_nobody_is_kept_waiting_and_nobody_is_asked_in_vain(tmp_path: Path) -> None:
    """Two people have different questions before them; when one leaves, the other gets what was theirs."""
    session = Session(draw_questions(pool(*GIVEN[:3]), Human(answers=2, comparisons=1)), [], tmp_path)
    first, second = session.next("ann"), session.next("bob")
    assert first and second and first != second and session.next("ann") == first
    for _ in range(3):
        question = session.next("bob")
        assert question and session.save(Answer(question.id, "bob", "tie"))
    assert session.complete and session.next("ann") is None
    session.undo("bob", first.id)
    session.undo("bob", first.id)
    assert not session.complete and session.next("bob") == first
    again = Session([*session.questions.values()], [], tmp_path)
    assert again.answers == session.answers and again.judged == 2


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_no_two_answers_are_shown_together_twice_and_every_answer_is_shown(size: int) -> None:
    for n in range(2, 14):
        texts = [f"text {i}" for i in range(n)]
        [(_, candidates)] = pool([*texts, "text 1 "]).by_prompt()  # a copy, as far as anybody can see
        questions = draw_questions(pool([c.text for c in candidates]), Human(answers=size))
        two = [frozenset(two) for q in questions for two in combinations((c.text.strip() for c in q.candidates), 2)]
        assert len(two) == len({*two}) and all(len(each) == 2 for each in two)
        assert {text for each in two for text in each} == {*texts}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = ("annotator", "question", "verdict", "reasons", "comment", "seconds")


def test_requests_that_the_page_did_not_send_change_nothing(tmp_path: Path) -> None:
    with asking(tmp_path, *GIVEN, **SHARED) as running:
        ann = Person(running.port, "ann")
        judge(ann, 3)
        asked = ann.next()
        question, last = asked["question"]["id"], asked["last"]
        before = everything(tmp_path / "cache")
        mine = f"http://127.0.0.1:{running.port}"
        right = {"annotator": "ann", "question": question, "verdict": "a", "reasons": [], "comment": "", "seconds": 1}
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
            (403, {"Host": f"evil.example:{running.port}", "Origin": f"http://evil.example:{running.port}"}),
            (415, {"Content-Type": "text/plain"}),
            (415, {"Content-Type": "application/x-www-form-urlencoded"}),
        ):
            headers = {name: value.format(port=running.port) for name, value in headers.items()}
            assert ann.send("/answer", right, **headers)[0] == status, headers
        for status, content in ((400, b"{"), (400, b"[]"), (400, b"\xff"), (400, b"[" * 5000), (413, b" " * 10**6)):
            assert ann.send("/answer", content)[0] == status, content[:10]
        for path in ("/undo", "/next"):
            assert ann.send(path, {"annotator": "no/body"})[0] == 400
        assert ann.send("/undo", {"question": "0" * 16})[0] == 404
        assert ann.send("/answers", right)[0] == 404
        seeded = random.Random(0)

        @settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(st.sampled_from(NAMES), JSON), st.sampled_from(["/answer", "/undo"]))
        def wrong(body: dict[str, Any], path: str) -> None:
            body = {"question": question} | body if seeded.random() < 0.5 else body
            content = json.dumps({"annotator": "ann", "verdict": "?"} | body).encode()
            status, _ = ann.send(path, content)
            assert 400 <= status < 500 or (path == "/undo" and body.get("question") == question), status

        wrong()
        assert everything(tmp_path / "cache") == before
        assert ann.next() == asked
        assert ann.send("/answer", right, Origin=mine)[0] == 200, "and the page's own request is taken"


def test_the_page_loads_nothing_and_holds_nothing_of_the_session(tmp_path: Path) -> None:
    given = pool(*GIVEN[:2])
    for candidate in given.candidates:
        candidate.policy, candidate.sampler = "some-policy", "some-sampler"
    session = Session(draw_questions(given, Human()), [], tmp_path)
    page = server.Page(session, Human(instructions="Which?"), None, server.Progress(2, "", ""))
    told = json.dumps(page.state("ann")) + server.HTML
    hidden = ["some-policy", "some-sampler", *(c.candidate_id for c in given.candidates), "p0", "p1"]
    assert not [each for each in hidden if each in told]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", server.HTML.replace("<!doctype", ""))
    orders = Counter(q.order(f"person-{i}") for q in session.questions.values() for i in range(200))
    assert min(orders["ab"], orders["ba"]) > 150, "either answer may come first"


def test_what_is_asked_shows_every_candidate_and_is_the_same_of_a_smaller_pool() -> None:
    given = pool(["a", "b", "c", "d", "e"], ["same", "same"], ["x", "y", "x"], ["z"])
    for keys in ({"answers": 2}, {"answers": 3}, {"answers": 6}, {"answers": 2, "comparisons": 2}, {"prompts": 1}):
        asked = draw_questions(given, Human(**keys))
        shown = {c.candidate_id for q in asked for c in q.candidates}
        assert {q.prompt.id for q in asked} <= {"p0", "p2"}, "elsewhere nothing differs"
        if "comparisons" not in keys and "prompts" not in keys:
            assert sorted({c.text for q in asked for c in q.candidates}) == [*"abcdexy"]
            assert all(len({c.text for c in q.candidates}) == len(q.candidates) for q in asked)
        smaller = Pool(given.prompts, [c for c in given.candidates if c.candidate_id in shown])
        assert draw_questions(smaller, Human(**keys)) == asked
    every = draw_questions(given, Human(overlap=0.5, annotators=3))
    assert Counter(q.needed for q in every) == {3: round(len(every) / 2), 1: len(every) - round(len(every) / 2)}
    assert {q.id for q in draw_questions(given, Human(instructions="other"))}.isdisjoint(q.id for q in every)


def question() -> Question:
    [asked] = draw_questions(pool(["x", "y", "z"]), Human(answers=3))
    return asked


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("b", ["b", "a"]),  # of a and b, of b and c
        ("ccb", ["b", "b"]),  # of a and c, of b and c
        ("ab", ["tie", "tie"]),  # half is no majority: of a and b, of a and c
        (["tie"], ["tie", "tie"]),
        (["bad", "bad", "a"], ["tie", "tie"]),
        (["skip", "a"], ["a", "a"]),
        (["skip"], [None, None]),
    ],
)
def test_several_people_are_a_majority(said: Any, expected: list[str | None]) -> None:
    asked = question()
    found = question_judgements(asked, [Answer(asked.id, f"person-{i}", word) for i, word in enumerate(said)])
    assert [j.preference for j in found] == expected
    assert all((j.error is None) == (j.preference is not None) for j in found)
    assert [json.loads(str(j.raw))["person-0"]["verdict"] for j in found] == [said[0]] * 2


USERS = ("35f4f60d-2941-5f29-bcff-62e51c272c68", "9b0f2c1e-7a3d-4f55-8a6b-0d1c2e3f4a5b")  # of Argilla's


def test_argilla_gets_what_waits_and_what_its_own_users_said(tmp_path: Path) -> None:
    """A response by somebody who is none of its users would have it refuse the whole record."""
    session, out = Session(draw_questions(pool(*GIVEN), Human(overlap=0.0)), [], tmp_path / "people"), work(tmp_path)
    here, there, *waiting = session.questions
    session.save(Answer(here, "ann", "a"))
    session.save(Answer(there, USERS[0], "tie", (), "equal"))
    answer_rows.write(session, out)
    records = {record["id"]: record for record in json.loads((out / answer_rows.ARGILLA).read_text())}
    assert records.keys() == {there, *waiting}
    assert records[there]["responses"] == {
        "verdict": [{"value": "tie", "user_id": USERS[0]}],
        "comment": [{"value": "equal", "user_id": USERS[0]}],
    }
    asked = session.questions[waiting[0]]
    assert records[waiting[0]]["responses"] == {} and records[waiting[0]]["status"] == "pending"
    assert {"prompt", *asked.letters} == records[waiting[0]]["fields"].keys()


def of_argilla(session: Session) -> tuple[Any, Any]:
    """Two records as argilla 2.8.0 writes them, by `records.to_json`, and flat: one that both users answered, of whom
    one only drafted it, and one that nobody did."""
    first, second = [*session.questions][:2]
    rest = {"metadata": {}, "suggestions": {}, "vectors": {}, "_server_id": USERS[1]}
    by = lambda value, user: {"value": value, "user_id": USERS[user]}
    said = {"verdict": [by("b", 0), by("a", 1)], "reasons": [by(["clear"], 0)], "comment": [by("so", 0)]}
    fields = {"prompt": "user: x", "a": "y", "b": "z"}
    nested = [
        {"id": first, "fields": fields, "responses": said, "status": "completed", **rest},
        {"id": second, "fields": fields, "responses": {}, "status": "pending", **rest},
    ]
    flat = [{"id": i, "status": "completed", "_server_id": USERS[1], **fields} for i in (first, second)]
    flat[0] |= {"verdict.responses": ["b", "a"], "verdict.responses.users": [*USERS]}
    flat[0] |= {"verdict.responses.status": ["submitted", "draft"], "reasons.responses": [["clear"]]}
    flat[0] |= {"reasons.responses.users": [USERS[0]], "reasons.responses.status": ["submitted"]}
    flat[0] |= {f"comment.responses{more}": [its] for more, its in (("", "so"), (".users", USERS[0]))}
    flat[1] |= {key: None for key in flat[0] if "." in key}
    return nested, flat


def test_what_argilla_writes_is_read(tmp_path: Path) -> None:
    def read(name: str, content: str) -> dict[str, Any]:
        session = Session(draw_questions(pool(*GIVEN), Human()), ["clear"], tmp_path / name)
        (tmp_path / f"{name}.json").write_text(content)
        told = answer_rows.read(tmp_path / f"{name}.json", session)
        assert told.endswith(", 0 known already, 1 blanks, 0 to other questions")
        return {who: [a.content for a in mine.values()] for who, mine in session.answers.items()}

    nested, flat = of_argilla(Session(draw_questions(pool(*GIVEN), Human()), [], tmp_path / "asked"))
    expected = {USERS[0]: [("b", ("clear",), "so")]}
    assert read("nested", json.dumps(nested, indent=1)) == expected | {USERS[1]: [("a", (), "")]}
    assert read("lines", "".join(f"{json.dumps(row)}\n" for row in flat)) == expected, "a draft is no answer"
    assert read("flat", json.dumps(flat)) == expected
    nested[1]["responses"] = {"verdict": [{"value": "c", "user_id": USERS[0]}]}
    with pytest.raises(UserError, match=r"wrong.json: record 2: "):
        read("wrong", json.dumps(nested))
    with pytest.raises(UserError, match="begins as a list"):
        read("cut", json.dumps(nested)[:-9])


def test_answers_go_out_and_come_in_again_plain_or_as_argillas_records(tmp_path: Path) -> None:
    def session(name: str) -> Session:
        asked = draw_questions(pool(*GIVEN), Human(overlap=0.5, annotators=2))
        return Session(asked, ["clear", "short"], tmp_path / name)

    theirs, out = session("theirs"), work(tmp_path)
    for i, asked in enumerate([*theirs.questions][:-1]):
        for name in USERS[: 1 + i % 2]:
            reasons = ("clear", "short")[: i % 3]
            theirs.save(Answer(asked, name, ("a", "b", "tie", "bad", "skip")[i % 5], reasons, "so ü" * (i % 2)))
    answer_rows.write(theirs, out)
    for name in (answer_rows.PLAIN, answer_rows.ARGILLA):
        ours = session(name)
        assert ", 0 known already, 1 blanks, 0 to other" in answer_rows.read(out / name, ours)
        said = {who: {q: a.content for q, a in mine.items()} for who, mine in theirs.answers.items()}
        assert {who: {q: a.content for q, a in mine.items()} for who, mine in ours.answers.items()} == said
        before = everything(tmp_path / name)
        assert answer_rows.read(out / name, ours).count(": 0 answers") == 1, "what is known is kept once"
        assert everything(tmp_path / name) == before
    lines = (out / answer_rows.PLAIN).read_text().splitlines()
    for changed, reason in (
        ('{"question"', "line 3: no row of"),
        ("[]", "line 3: no row of"),
        (lines[2].replace('"verdict": "', '"verdict": "?'), "line 3: a verdict is one of a, b, tie, bad, skip"),
        (re.sub('"annotator": "[^"]*"', '"annotator": "../x"', lines[2]), "line 3: a name is"),
        (lines[2].replace('"comment": "', '"comment": "other'), "said"),
        ("{}", "line 3: no row of answers.jsonl or argilla.json: it lacks 'verdict'"),
    ):
        bad, fresh = tmp_path / "bad.jsonl", session("fresh")
        bad.write_text("\n".join([*lines[:2], changed, lines[2]]))
        with pytest.raises(UserError, match=re.escape(reason)):
            answer_rows.read(bad, fresh)
        assert not fresh.answers and not [*(tmp_path / "fresh").glob("*.jsonl")], "nothing of such a file is kept"


def test_the_node_is_complete_when_its_questions_are_and_asks_nobody_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("label=human", "label.human.runtime.port=0", "label.human.comparisons=null")
    with somebody(monkeypatch, lambda asked: "ab"[asked["answers"][1]["text"] > asked["answers"][0]["text"]]) as ports:
        build(chain.root, "stage=pairs", *line)
    metrics = chain.manifest("label", *line)["metrics"]
    figures = metrics["calls"]["label.human"]
    assert metrics["judgements"] == figures["questions"] == figures["answers"]["ann"] > 0 and not metrics["failed"]
    for pair in load(chain.folder("pairs", *line) / "pairs.parquet", Pair):
        assert pair.chosen[0]["content"] > pair.rejected[0]["content"]
    build(chain.root, "stage=label", *line, "rebuild=label")
    build(chain.root, "stage=label", *line, "label.human.overlap=0.0", "label.human.prompts=3")
    assert len(ports) == 1


def test_only_what_is_asked_makes_the_fingerprint(chain: Chain) -> None:
    def fingerprint(*keys: str) -> str:
        return nodes(chain.root, "label=human", *(f"label.human.{key}" for key in keys))["label"].fingerprint

    given = chain.root.parent / "answers.jsonl"
    given.touch()
    assert fingerprint() == fingerprint("runtime.port=1") == fingerprint(f"answered={given}")
    others = [fingerprint(key) for key in ("instructions=other", "answers=3", "seed=1", "prompts=2", "overlap=1")]
    assert len({fingerprint(), *others}) == 6


def test_what_cannot_work_is_told_before_anything_is_sampled() -> None:
    assert "label=human" in refused("recipe=tiny", "label.human.seed=1")
    assert "label.human.reasons" in refused("recipe=tiny", "label=human", "label.human.reasons=[a,a]")
    assert "no such file" in refused("recipe=tiny", "label=human", "label.human.answered=nowhere.jsonl")
    assert "must be from 2 to 6" in refused("recipe=tiny", "label=human", "label.human.answers=7")
