"""The order in which replies arrive changes no result, and equal requests are one call."""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stages import label, pairs, select, unpaired
from stages.config.choices import Strategy
from stages.labelers.judge import JudgeLabeler
from stages.labelers.labeler import Pool
from stages.store.records import Candidate, Example, Judgement, content_id, load, save
from tests.endpoints.servers import Model, Proxy, Request, running
from tests.helpers import TINY, Chain, settings
from tests.labelers.judging import PROBE, better, block, greater, is_probe, judged, judging
from tests.rows import pool, save_pool, work, work_with_calls

pytest.importorskip("openai")
COPIES = [["poor 1", "good 3", "poor 1", "good 3"], ["good 9", "poor 0"]]
# replies on COPIES from when equal requests were two calls
PAID = Path(__file__).with_name("paid_before.jsonl")
PAID_AT = "http://127.0.0.1:1009/v1"  # an address without a server


def by_length(texts: dict[str, str]) -> str:
    """Return the better text by its length modulo 3; many are equally good."""
    return greater(len(texts["A"]) % 3, len(texts["B"]) % 3)


@pytest.fixture
def judge() -> Iterator[Model]:
    """Serve a judge whose verdict is a function of the texts."""
    with running(Model(judging(by_length))) as model:
        yield model


@pytest.fixture
def sampled(built: Path, tmp_path: Path) -> Path:
    """Make a pool of six prompts with checks: the right answer, and others with copies and equal lengths."""
    prompts = load(Chain(built).folder("sample") / "prompts.parquet", Example)[:6]
    candidates = []
    for i, prompt in enumerate(prompts):
        ships = f"The sea has {i} ships."
        texts = [str(prompt.reference), ships, ships, f"The tides rise {i} times."]
        for j, text in enumerate(texts):
            candidate = Candidate.from_text(prompt.id, text, "sft", "hf", len(text.split()))
            candidates.append(replace(candidate, candidate_id=content_id(prompt.id, j)))
    return save_pool(tmp_path / "sampled", prompts, candidates)


def published(folder: Path) -> dict[str, bytes]:
    """Return the files that a stage would publish."""
    files = [path for path in folder.rglob("*") if path.is_file() and "scratch" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def followers(judged: Path, root: Path) -> dict[str, dict[str, bytes]]:
    """Return the files that every later stage makes of a judged pool."""
    cfg = settings(*TINY)
    every = replace(cfg.pairs, max_per_prompt=2, min_margin=0.0, max_length_ratio=None)
    for strategy in Strategy:
        pairs.run(replace(every, strategy=strategy), {"judged": judged}, work(root / strategy))
    unpaired.run(replace(cfg.unpaired, threshold=0.5), {"judged": judged}, work(root / "unpaired"))
    if any(j.score is not None for j in load(judged / "judgements.parquet", Judgement)):
        block = replace(cfg.select, min_score=0.0, max_per_task=1000)
        save(root / "examples.parquet", [], Example)
        select.run(block, {"judged": judged, "data": root}, work(root / "select"))
    return {folder.name: published(folder) for folder in root.iterdir() if folder.is_dir()}


def labelled(judge: Model, candidates: Path, folder: Path) -> Path:
    """Return the folder of the labels that the judge gives a pool."""
    out = work_with_calls(folder)
    label.run(block(folder, judge.url, audit=20), {"pool": candidates}, out)
    return out.path


@pytest.mark.extended
def test_another_order_of_arrival_makes_the_same_labels_and_all_that_follows(
    sampled: Path, judge: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = list[dict[str, dict[str, bytes]]]()
    judge_all = JudgeLabeler.judge_all
    for seed in (1, 2):

        def arriving(labeler: JudgeLabeler, candidates: Pool, seed: int = seed) -> list[Judgement]:
            judgements = [*judge_all(labeler, candidates)]
            random.Random(seed).shuffle(judgements)
            return judgements

        monkeypatch.setattr(JudgeLabeler, "judge_all", arriving)
        folder = labelled(judge, sampled, tmp_path / f"{seed}")
        files = followers(folder, tmp_path / f"{seed}-made")
        outcomes.append({"label": published(folder)} | files)
    assert outcomes[0] == outcomes[1]


def test_a_pool_whose_rows_lie_in_another_order_gives_the_same_pairs(
    sampled: Path, judge: Model, tmp_path: Path
) -> None:
    """Earlier versions wrote judgements as they arrived."""
    first = labelled(judge, sampled, tmp_path / "label")
    second = Path(shutil.copytree(first, tmp_path / "mixed"))
    for file, kind in (("judgements", Judgement), ("candidates", Candidate)):
        rows = load(first / f"{file}.parquet", kind)
        random.Random(1).shuffle(rows)
        save(second / f"{file}.parquet", rows, kind)
    expected = followers(first, tmp_path / "label.made")
    files = followers(second, tmp_path / "mixed.made")
    for stage in expected.keys() - {"unpaired"}:  # its rows have the order of the pool's rows
        assert files[stage] == expected[stage], stage


@pytest.mark.extended
def test_answers_that_overtake_each_other_make_one_file(tmp_path: Path) -> None:
    several = pool(*([f"poor {i}", f"good {i + 1}", f"fair {i % 3}"] for i in range(5)))
    save_pool(tmp_path / "pool", several.prompts, several.candidates)
    files = set[bytes]()
    with running(Model(judging(better), late=0.05)) as model:
        for folder in (tmp_path / "one", tmp_path / "two"):  # each run asks all questions
            out = work_with_calls(folder)
            label.run(block(folder, model.url), {"pool": tmp_path / "pool"}, out)
            files.add((out / "judgements.parquet").read_bytes())
        assert len(model.requests) == 2 * (1 + 5 * 6)
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
    labeler = JudgeLabeler(block(tmp_path, PAID_AT, kind=kind), out)
    labeler.judges[0].calls.path.parent.mkdir(parents=True)
    shutil.copy(PAID, labeler.judges[0].calls.path)
    judgements = [*labeler.judge_all(pool(*COPIES))]
    assert not any(j.error for j in judgements)
    figures = out.endpoint_calls["label.endpoints[0]"]
    assert figures["made"] == 0 and figures["kept"] == 5
    assert labeler.judges[0].calls.path.read_bytes() == PAID.read_bytes()


def test_a_fault_on_the_way_does_not_decide_which_reply_counts(tmp_path: Path) -> None:
    """The judge's verdict depends on the seed, and half of the calls fail."""

    def says(request: Request) -> str:
        return PROBE if is_probe(request) else json.dumps({"verdict": "AB"[request["seed"] % 2]})

    several = pool(*([f"poor {i}", f"good {i}"] for i in range(12)))
    with running(Model(says)) as model, running(Proxy(model, 0.5, 0.0, ("500",))) as proxy:
        cfg = block(tmp_path, proxy.url, kind="pairwise", attempts=9)
        cfg.endpoints[0].runtime.retries = 0
        judgements = [*JudgeLabeler(cfg, work_with_calls(tmp_path)).judge_all(several)]
    assert proxy.failed["500"] > 9 and {j.raw for j in judgements} == {judgements[0].raw}
