"""`label=human` without a browser: questions, stored answers, rejected requests, and the judgements."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.labels import HumanRuntime
from stages.config.errors import LimitReached, UserError
from stages.extras.human import Human, answer_rows, server
from stages.extras.human.labeler import draw_questions, question_judgements
from stages.extras.human.session import Answer, Session
from stages.store.allowance import Allowance
from stages.store.records import Pair, load
from tests.extras.human.asking import Asking, Person, asking, kept_of, somebody
from tests.helpers import Chain, build, nodes, refused
from tests.rows import pool, work, work_with_calls

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


def test_the_page_stops_when_the_time_is_up(tmp_path: Path) -> None:
    people = Human(runtime=HumanRuntime("127.0.0.1", 0))
    questions = draw_questions(pool(*GIVEN), people)
    out = work_with_calls(tmp_path)
    out.allowance = Allowance(minutes=0.002)
    with pytest.raises(LimitReached, match=f"in label human after 0 of {len(questions)} "):
        server.collect_answers(questions, people, out)


@pytest.mark.extended
def test_two_people_at_once_repeats_and_a_kill_save_every_answer_once(tmp_path: Path) -> None:
    three = [[*texts, f"fair {i}"] for i, texts in enumerate(GIVEN)]
    keys = SHARED | {"answers": 3}
    with asking(tmp_path, *three, **keys) as first:
        ann = Person(first.port, "ann")
        bob = Person(first.port, "bob")
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
    assert len(judged["judgements"]) == 2 * len(GIVEN), (
        "one judgement of the best answer with each other one"
    )
    best = {c.candidate_id for c in pool(*three).candidates if c.text.startswith("good")}
    assert all(j[j["preference"]] in best for j in judged["judgements"])
    assert judged["figures"]["agreement"] == {"questions": len(GIVEN), "alpha": 1.0, "same": 1.0}


def test_two_people_get_different_questions_and_open_ones_are_passed_on(tmp_path: Path) -> None:
    """Two people see different questions; after one leaves, the other gets the open question."""
    questions = draw_questions(pool(*GIVEN[:3]), Human(answers=2, comparisons=1))
    session = Session(questions, [], tmp_path)
    first = session.next("ann")
    second = session.next("bob")
    assert first and second and first != second
    assert session.next("ann") == first
    for _ in range(3):
        question = session.next("bob")
        assert question and session.save(Answer(question.id, "bob", "tie"))
    assert session.complete and session.next("ann") is None
    session.undo("bob", first.id)
    assert not session.complete and session.next("bob") == first
    assert Session(questions, [], tmp_path).answers == session.answers, "after a restart too"


@pytest.mark.parametrize("size", [2, 3, 6])
def test_no_two_answers_are_shown_together_twice_and_every_answer_is_shown(size: int) -> None:
    for n in (2, 3, 7, 13):
        texts = [f"text {i}" for i in range(n)]
        pool_with_a_copy = pool([*texts, "text 1 "])  # a copy except for a space
        questions = draw_questions(pool_with_a_copy, Human(answers=size, comparisons=None))
        together = list[frozenset[str]]()
        for question in questions:
            shown = [c.text.strip() for c in question.candidates]
            together += map(frozenset, combinations(shown, 2))
        assert len(together) == len({*together})
        assert frozenset.union(*together) == {*texts}


@pytest.mark.extended
def test_requests_that_the_page_did_not_send_change_nothing(tmp_path: Path) -> None:
    with asking(tmp_path, *GIVEN, **SHARED) as running:
        ann = Person(running.port, "ann")
        judge(ann, 3)
        state = ann.next()
        before = everything(tmp_path / "cache")
        here = f"127.0.0.1:{running.port}"
        elsewhere = f"evil.example:{running.port}"
        right = {
            "annotator": "ann",
            "question": state["question"]["id"],
            "verdict": "a",
            "reasons": [],
            "comment": "",
            "seconds": 1,
        }
        for status, change in (
            (400, {"verdict": "c"}),
            (400, {"reasons": ["unknown"]}),
            (400, {"comment": "x" * 2001}),
            (400, {"seconds": float("nan")}),
            (400, {"annotator": "../ann"}),
            (404, {"question": "../../etc"}),
            (409, {"question": state["last"], "verdict": "bad"}),
        ):
            assert ann.send("/answer", right | change)[0] == status, change
        for status, headers in (
            (403, {"Origin": "http://evil.example"}),
            (403, {"Origin": "null"}),
            (403, {"Origin": f"chrome-extension://{here}"}),
            (403, {"Origin": f"http://{here}.evil.example"}),
            (403, {"Host": elsewhere, "Origin": f"http://{elsewhere}"}),
            (415, {"Content-Type": "text/plain"}),
        ):
            assert ann.send("/answer", right, **headers)[0] == status, headers
        for content in (b"{", b"[]", b"\xff", b"[" * 5000):
            assert ann.send("/answer", content)[0] == 400, content[:10]
        assert ann.send("/undo", {"question": "0" * 16})[0] == 404
        assert everything(tmp_path / "cache") == before
        assert ann.next() == state
        assert ann.send("/answer", right, Origin=f"http://{here}")[0] == 200, (
            "the page's own request is accepted"
        )


def test_the_page_loads_nothing_and_holds_nothing_of_the_session(tmp_path: Path) -> None:
    two_prompts = pool(*GIVEN[:2])
    for candidate in two_prompts.candidates:
        candidate.policy = "some-policy"
    session = Session(draw_questions(two_prompts, Human()), [], tmp_path)
    page = server.Page(session, Human(instructions="Which?"), None, server.Progress(2, "", ""))
    sent = json.dumps(page.state("ann")) + server.HTML
    ids = [candidate.candidate_id for candidate in two_prompts.candidates]
    assert not [each for each in ("some-policy", "p0", "p1", *ids) if each in sent]
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?:|//[a-z]|@import|url\(", server.HTML.replace("<!doctype", ""))
    [question, _] = session.questions.values()
    orders = Counter(question.order(f"person-{i}") for i in range(400))
    assert min(orders["ab"], orders["ba"]) > 150, "either answer may come first"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("b", ["b", "a"]),  # of a and b, of b and c
        ("ccb", ["b", "b"]),  # of a and c, of b and c
        ("ab", ["tie", "tie"]),  # half is not a majority: of a and b, of a and c
        (["bad", "bad", "a"], ["tie", "tie"]),
        (["skip", "a"], ["a", "a"]),
        (["skip"], [None, None]),
    ],
)
def test_several_people_decide_by_majority(verdicts: Any, expected: list[str | None]) -> None:
    [asked] = draw_questions(pool(["x", "y", "z"]), Human(answers=3))
    answers = [Answer(asked.id, f"person-{i}", word) for i, word in enumerate(verdicts)]
    preferences = question_judgements(asked, answers)
    assert [j.preference for j in preferences] == expected
    assert all((j.error is None) == (j.preference is not None) for j in preferences)


def test_exported_answers_are_read_back(tmp_path: Path) -> None:
    def session(name: str) -> Session:
        questions = draw_questions(pool(*GIVEN), Human(overlap=0.5, annotators=2))
        return Session(questions, ["clear", "short"], tmp_path / name)

    source = session("theirs")
    target = session("ours")
    out = work_with_calls(tmp_path)
    [*answered, _] = source.questions
    for question_id, verdict in zip(answered, cycle(["a", "b", "tie", "bad", "skip"])):
        source.save(Answer(question_id, "ann", verdict, ("clear",), "so ü"))
        source.save(Answer(question_id, "bob", "tie"))
    answer_rows.write(source, out)
    file = out / answer_rows.FILE
    answer_rows.read(file, target)
    for name in ("ann", "bob"):
        answers = source.answers[name]
        assert target.answers[name].keys() == answers.keys()
        for question_id, answer in answers.items():
            assert target.answers[name][question_id].content == answer.content
    before = everything(tmp_path / "ours")
    answer_rows.read(file, target)
    assert everything(tmp_path / "ours") == before, "a stored answer is not stored again"

    lines = file.read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    fresh = session("fresh")
    unknown_verdict = lines[2].replace('"verdict": "', '"verdict": "?')
    other_comment = lines[2].replace('"comment": "', '"comment": "other')
    for changed, reason in (
        ("{}", "the field 'verdict' is missing"),
        (unknown_verdict, "line 3: a verdict is"),
        (other_comment, "already answered"),
    ):
        bad.write_text("\n".join([*lines[:2], changed, lines[2]]))
        with pytest.raises(UserError, match=reason):
            answer_rows.read(bad, fresh)
        assert not fresh.answers, "a bad file changes nothing"


def test_a_file_that_somebody_filled_in_is_never_overwritten(tmp_path: Path) -> None:
    out = work_with_calls(tmp_path)
    session = Session(draw_questions(pool(*GIVEN), Human()), [], tmp_path / "people")
    answer_rows.write(session, out)
    file = out / answer_rows.FILE
    blank = file.read_text()
    answer_rows.write(session, out)
    assert len([*out.path.glob("answers*")]) == 1, "its own file is written anew"
    filled = blank.replace('"verdict": null', '"verdict": "a"')
    filled = filled.replace('"annotator": null', '"annotator": "ann"')
    file.write_text(filled)
    answer_rows.write(session, out)
    [moved] = out.path.glob("answers-*")
    assert file.read_text() == blank
    assert moved.read_text() == filled
    assert any(str(moved) in warning for warning in out.warnings)
    answer_rows.read(moved, session)
    assert session.complete


def test_the_node_is_complete_when_its_questions_are_and_asks_nobody_again(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("label=human", "label.runtime.port=0", "label.comparisons=null")

    def last_letter(question: dict[str, Any]) -> str:
        first, second = [answer["text"] for answer in question["answers"]]
        return "b" if second > first else "a"

    with somebody(monkeypatch, last_letter) as ports:
        build(chain.root, "stage=pairs", *line)
    metrics = chain.manifest("label", *line)["metrics"]
    figures = metrics["calls"]["label.human"]
    assert metrics["judgements"] == figures["questions"] == figures["answers"]["ann"] > 0
    for pair in load(chain.folder("pairs", *line) / "pairs.parquet", Pair):
        assert pair.chosen[0]["content"] > pair.rejected[0]["content"]
    build(chain.root, "stage=label", *line, "rebuild=label")
    build(chain.root, "stage=label", *line, "label.overlap=0.0", "label.prompts=3")
    assert len(ports) == 1


def test_only_the_questions_change_the_fingerprint(chain: Chain) -> None:
    def fingerprint(*keys: str) -> str:
        typed = [f"label.{key}" for key in keys]
        return nodes(chain.root, "label=human", *typed)["label"].fingerprint

    answers_file = chain.root.parent / "answers.jsonl"
    answers_file.touch()
    plain = fingerprint()
    assert plain == fingerprint("runtime.port=1") == fingerprint(f"answered={answers_file}")
    for key in ("instructions=other", "answers=3", "seed=1", "prompts=2", "overlap=1"):
        assert fingerprint(key) != plain


def test_invalid_settings_are_refused_before_sampling() -> None:
    assert "label=human" in refused("recipe=tiny", "label.seed=1")
    assert "label.reasons" in refused("recipe=tiny", "label=human", "label.reasons=[a,a]")
    assert "label.answered=nowhere.jsonl: " in refused(
        "recipe=tiny", "label=human", "label.answered=nowhere.jsonl"
    )
    assert "must be from 2 to" in refused("recipe=tiny", "label=human", "label.answers=7")


def test_a_file_of_answers_is_named_by_the_block_of_people(tmp_path: Path) -> None:
    session = Session([], [], tmp_path / "people", "eval.judged.human")
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    with pytest.raises(UserError, match=r"^eval\.judged\.human\.answered="):
        answer_rows.read(answers, session)
    out = work(tmp_path / "node")
    answer_rows.write(session, out)
    (out / answer_rows.FILE).write_text("changed\n")
    answer_rows.write(session, out)
    assert "eval.judged.human.answered=" in out.warnings[0]
