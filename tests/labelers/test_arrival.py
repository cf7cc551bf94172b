"""The order in which replies arrive changes no result, and equal requests are one call."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stages import label, pairs, select, unpaired
from stages.config.blocks.labels import Human, Label
from stages.config.choices import Strategy
from stages.labelers.judge import Jury
from stages.labelers.labeler import Labeler, Pool
from stages.labelers.making import make_labeler
from stages.labelers.people.questions import draw_questions
from stages.labelers.people.session import Answer
from stages.store.records import Candidate, Example, Judgement, content_id, load, save
from stages.store.source_files import pin
from stages.store.workspace import StageDir
from tests.endpoints.servers import Model, Proxy, Request, running
from tests.helpers import TINY, Chain, settings, slow_but
from tests.labelers.judging import PROBE, better, block, is_probe, judged, judging
from tests.rows import pool, save_pool, work, work_with_calls

pytest.importorskip("openai")
COPIES = [["poor 1", "good 3", "poor 1", "good 3"], ["good 9", "poor 0"]]
# replies on COPIES from when equal requests were two calls
PAID = Path(__file__).with_name("paid_before.jsonl")
PAID_AT = "http://127.0.0.1:1009/v1"  # an address without a server
LABELERS = ("verifier", "judge", "human", "ensemble", "own")
OWN = """
from stages.labelers.labeler import Labeler
from stages.store.records import Judgement

class Mine(Labeler):
    name = "mine"

    def judge(self, prompt, candidates):
        for i, a in enumerate(candidates):
            for b in candidates[:i]:
                word = "a" if len(a.text) > len(b.text) else "b" if len(a.text) < len(b.text) else "tie"
                yield Judgement(prompt.id, self.name, a=a.candidate_id, b=b.candidate_id, preference=word)
"""


def by_length(texts: dict[str, str]) -> str:
    """Return the better text by its length modulo 3; many are equally good."""
    a, b = len(texts["A"]) % 3, len(texts["B"]) % 3
    return "A" if a > b else "B" if b > a else "tie"


@pytest.fixture
def judge() -> Iterator[Model]:
    """Serve a judge whose verdict is a function of the texts."""
    with running(Model(judging(by_length))) as model:
        yield model


def typed(name: str, judge: Model, folder: Path) -> tuple[str, ...]:
    """Return the command line of a labeler, and write the files that it names."""
    asking = f"label.endpoints=[{{base_url: '{judge.url}', model: judge}}]"
    match name:
        case "own":
            (folder / "mine.py").write_text(OWN)
            return "label=own", f"label.own={{file: {folder / 'mine.py'}, name: Mine}}"
        case "ensemble":
            members = "label.members=[{labeler: verifier}, {labeler: judge, weight: 2}]"
            return "label=ensemble", asking.replace("label.", "label.judge."), members
        case "human":
            return "label=human", "label.answers=3", "label.overlap=0.5"
        case "judge":
            return "label=judge", asking
    return ("label=verifier",)


@pytest.fixture
def sampled(built: Path, tmp_path: Path) -> Path:
    """Make a pool of six prompts with checks: the right answer, and others with copies and equal lengths."""
    prompts = load(Chain(built).folder("sample") / "prompts.parquet", Example)[:6]
    candidates = []
    for i, prompt in enumerate(prompts):
        ships = f"The sea has {i} ships."
        texts = [
            str(prompt.reference),
            ships,
            ships,
            f"{i} ships sail the sea.",
            f"The tides rise {i} times.",
        ]
        for j, text in enumerate(texts):
            candidate = Candidate.from_text(prompt.id, text, "sft", "hf", len(text.split()))
            candidates.append(replace(candidate, candidate_id=content_id(prompt.id, j)))
    return save_pool(tmp_path / "sampled", prompts, candidates)


def write_journals(cfg: Human, folder: Path, calls: Path, order: int) -> None:
    """Write two people's answers to all questions, shuffled by the seed `order`."""
    candidates = Pool(
        load(folder / "prompts.parquet", Example), load(folder / "candidates.parquet", Candidate)
    )
    answers = [
        Answer(
            question.id, name, question.words[int(question.id, 16) % 3], order=question.order(name)
        )
        for question in draw_questions(candidates, cfg)
        for name in ("ann", "bob")
    ]
    (calls / "people").mkdir(parents=True)
    random.Random(order).shuffle(answers)
    for answer in answers:
        with open(calls / "people" / f"{answer.annotator}.jsonl", "a") as journal:
            journal.write(json.dumps(asdict(answer)) + "\n")


def published(folder: Path) -> dict[str, bytes]:
    """Return the files that a stage would publish."""
    files = [path for path in folder.rglob("*") if path.is_file() and "scratch" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def followers(judged: Path, root: Path) -> dict[str, dict[str, bytes]]:
    """Return the files that every later stage makes of a judged pool."""
    cfg, works = settings(*TINY), dict[str, StageDir]()

    def started(name: str) -> StageDir:
        (root / name).mkdir(parents=True)
        works[name] = work(root / name)
        return works[name]

    for strategy in Strategy:
        block = replace(
            cfg.pairs, strategy=strategy, max_per_prompt=2, min_margin=0.0, max_length_ratio=None
        )
        pairs.run(block, {"judged": judged}, started(strategy))
    unpaired.run(replace(cfg.unpaired, threshold=0.5), {"judged": judged}, started("unpaired"))
    if any(j.score is not None for j in load(judged / "judgements.parquet", Judgement)):
        block = replace(cfg.select, min_score=0.0, max_per_task=1000)
        save(root / "examples.parquet", [], Example)
        select.run(block, {"judged": judged, "data": root}, started("select"))
    return {name: published(work.path) for name, work in works.items()}


@pytest.mark.extended
@pytest.mark.parametrize("name", slow_but(LABELERS, "judge", "ensemble", "own"))
def test_another_order_of_arrival_makes_the_same_labels_and_all_that_follows(
    name: str,
    built: Path,
    sampled: Path,
    judge: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = (*typed(name, judge, tmp_path), "label.audit=20", "precision=fp32")
    cfg = pin(settings(*TINY, *overrides).label, tmp_path / "digests.json")[0]
    inputs = {"pool": sampled}
    for member in ("verifier", "judge") if name == "ensemble" else ():
        inputs[member] = labelled(typed(member, judge, tmp_path), sampled, tmp_path / member)
    outcomes = list[dict[str, dict[str, bytes]]]()
    for order in (1, 2):

        def arriving(cfg: Label, out: StageDir, order: int = order) -> Labeler:
            labeler = make_labeler(cfg, out)
            judgements = labeler.judge_all
            labeler.judge_all = lambda pool: mixed([*judgements(pool)], order)  # type: ignore[method-assign]
            return labeler

        root = tmp_path / f"{order}"
        (root / "label").mkdir(parents=True)
        if name == "human":
            write_journals(cfg, inputs["pool"], root / "calls", order)
        monkeypatch.setattr(label, "make_labeler", arriving)
        label.run(
            cfg,
            inputs,
            StageDir(root / "label", lambda metrics, step: None, call_folder=root / "calls"),
        )
        outcomes.append(
            {"label": published(root / "label"), **followers(root / "label", root / "made")}
        )
    for stage, files in outcomes[0].items():
        assert files == outcomes[1][stage], stage


def labelled(line: tuple[str, ...], candidates: Path, folder: Path) -> Path:
    """Return the folder of the labels that a command line makes of a pool."""
    folder.mkdir()
    cfg = pin(settings(*TINY, *line).label, folder.with_suffix(".json"))[0]
    label.run(
        cfg,
        {"pool": candidates},
        StageDir(folder, lambda metrics, step: None, call_folder=folder.with_name("calls")),
    )
    return folder


def mixed(judgements: list[Judgement], seed: int) -> list[Judgement]:
    random.Random(seed).shuffle(judgements)
    return judgements


@pytest.mark.parametrize("name", ["verifier", "judge"])
def test_a_pool_whose_rows_lie_in_another_order_gives_the_same_pairs(
    name: str, built: Path, sampled: Path, judge: Model, tmp_path: Path
) -> None:
    """Earlier versions wrote judgements as they arrived."""
    first, second = (
        labelled(typed(name, judge, tmp_path), sampled, tmp_path / "label"),
        tmp_path / "mixed",
    )
    shutil.copytree(first, second)
    for file, kind in (("judgements", Judgement), ("candidates", Candidate)):
        rows = load(first / f"{file}.parquet", kind)
        random.Random(1).shuffle(rows)
        save(second / f"{file}.parquet", rows, kind)
    files = [followers(folder, folder.with_suffix(".made")) for folder in (first, second)]
    for stage in {*files[0]} - {"unpaired"}:  # its rows have the order of the pool's rows
        assert files[0][stage] == files[1][stage], stage


@pytest.mark.extended
def test_answers_that_overtake_each_other_make_one_file(tmp_path: Path) -> None:
    several = pool(*([f"poor {i}", f"good {i + 1}", f"fair {i % 3}"] for i in range(5)))
    save_pool(tmp_path / "pool", several.prompts, several.candidates)
    files = set[bytes]()
    with running(Model(judging(better), late=0.05)) as model:
        for i in range(3):
            out = StageDir(tmp_path, lambda metrics, step: None, call_folder=tmp_path / f"{i}")
            label.run(block(tmp_path, model.url), {"pool": tmp_path / "pool"}, out)
            files.add((tmp_path / "judgements.parquet").read_bytes())
        assert len(model.requests) == 3 * (1 + 5 * 6), "each run asks all questions"
    assert len(files) == 1


def test_equal_requests_are_one_call_in_whatever_order_their_candidates_stand(
    tmp_path: Path,
) -> None:
    with running(Model(judging(better))) as model:
        assert len(judged(tmp_path, pool(*COPIES), model.url)) == 6 + 1
        bodies = {json.dumps(request, sort_keys=True) for request in model.requests}
        assert len(model.requests) == len(bodies) == 1 + 2 + 2


@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_what_was_paid_for_twice_before_is_taken_and_nothing_is_asked(
    kind: str, tmp_path: Path
) -> None:
    out = work_with_calls(tmp_path)
    labeler = Jury(block(tmp_path, PAID_AT, kind=kind), out)
    labeler.judges[0].calls.path.parent.mkdir(parents=True)
    shutil.copy(PAID, labeler.judges[0].calls.path)
    judgements = [*labeler.judge_all(pool(*COPIES))]
    assert len(judgements) == (7 if kind == "pairwise" else 6) and not any(
        j.error for j in judgements
    )
    figures = out.endpoint_calls["label.endpoints[0]"]
    assert figures["made"] == 0 and figures["kept"] == (1 + 2 + 2 if kind == "pairwise" else 1 + 4)
    assert labeler.judges[0].calls.path.read_bytes() == PAID.read_bytes()


def test_a_fault_on_the_way_does_not_decide_which_reply_counts(tmp_path: Path) -> None:
    """The judge's verdict depends on the seed, and half of the calls fail."""

    def says(request: Request) -> str:
        return PROBE if is_probe(request) else json.dumps({"verdict": "AB"[request["seed"] % 2]})

    several = pool(*([f"poor {i}", f"good {i}"] for i in range(12)))
    with running(Model(says)) as model, running(Proxy(model, 0.5, 0.0, ("500",))) as proxy:
        cfg = block(tmp_path, proxy.url, kind="pairwise", attempts=9)
        cfg.endpoints[0].runtime.retries = 0
        judgements = [*Jury(cfg, work_with_calls(tmp_path)).judge_all(several)]
    assert proxy.failed["500"] > 9 and {j.raw for j in judgements} == {judgements[0].raw}
