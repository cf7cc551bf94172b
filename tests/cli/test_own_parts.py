"""Tests of user-defined parts: the hashed bytes are run, nothing runs before its stage, no recipe may name them."""

import json
import os
from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.config.schema import RECIPES
from stages.store.records import Judgement, load
from tests.helpers import TINY, Chain, build, command, inside, nodes, refused

ONLY_TYPED = "label.own runs code. Type"
OWN = "  - override /label: own\n"  # goes on with the list of a recipe's defaults
LABELER = """
from pathlib import Path
from stages.labelers.labeler import Labeler
from stages.store.records import Judgement

Path({marker!r}).touch()


class Mine(Labeler):
    name = "mine"

    def __init__(self, sign=1):
        self.sign = sign

    def judge(self, prompt, candidates):
        for i, c in enumerate(candidates):
            yield Judgement(prompt.id, self.name, c.candidate_id, score=(1 + self.sign * i / len(candidates)) / 2)
"""


@pytest.fixture
def labeler(tmp_path: Path) -> Path:
    """A file with a labeler that writes the file `was run` if its code runs."""
    file = tmp_path / "mine.py"
    file.write_text(LABELER.format(marker=str(tmp_path / "was run")))
    return file


def own(file: Path, **options: object) -> tuple[str, str]:
    written = ", ".join(f"{key}: {value}" for key, value in options.items())
    return "label=own", f"label.own={{file: {file}, name: Mine, options: {{{written}}}}}"


@pytest.mark.extended
def test_a_plan_reads_it_and_runs_nothing_of_it(labeler: Path, chain: Chain) -> None:
    ran = inside(*TINY, f"outputs={chain.root}", "stage=plan", *own(labeler))
    assert ran.returncode == 0, ran.stderr
    assert not (labeler.parent / "was run").exists()
    build(chain.root, "stage=label", *own(labeler))
    assert (labeler.parent / "was run").exists()


@pytest.mark.extended
def test_it_is_a_member_of_an_ensemble_and_labels_once(labeler: Path, chain: Chain) -> None:
    members = "label.members=[{labeler: verifier, veto: 0.5}, {labeler: own, weight: 2}]"
    line = ("label=ensemble", members, own(labeler, sign=-1)[1])
    planned = nodes(chain.root, *line)
    assert (
        planned["label_own"].fingerprint
        == nodes(chain.root, *own(labeler, sign=-1))["label"].fingerprint
    )
    assert planned["label_verifier"].fingerprint == nodes(chain.root)["label"].fingerprint
    build(chain.root, "stage=pairs", *line)

    def judged(*line):
        return load(chain.folder("label", *line) / "judgements.parquet", Judgement)

    alone = {j.candidate_id: j.score for j in judged(*own(labeler, sign=-1))}
    metrics = chain.manifest("label", *line)["metrics"]
    heavier = [j for j in judged(*line) if j.preference and "own" in json.loads(j.raw or "{}")]
    assert 0 < metrics["ensemble"]["members"]["own"]["votes"] == len(heavier)
    for j in heavier:
        votes = json.loads(j.raw or "")
        assert votes["own"] == (
            "a" if alone[j.a] > alone[j.b] else "b" if alone[j.a] < alone[j.b] else "tie"
        )
    assert sum(j.preference == json.loads(j.raw or "")["own"] for j in heavier) > len(heavier) / 2
    unread = ("label=ensemble", members.replace("own", "judge"), own(labeler)[1])
    assert refused(*TINY, *unread).startswith("label.own: ")


@pytest.mark.extended
def test_its_bytes_and_options_make_the_fingerprint_and_its_place_does_not(
    labeler: Path, chain: Chain
) -> None:
    def fingerprint(file: Path, **options: object) -> str:
        return nodes(chain.root, *own(file, **options))["label"].fingerprint

    first = fingerprint(labeler)
    moved = labeler.rename(labeler.with_name("moved.py"))
    assert fingerprint(moved) == first
    assert fingerprint(moved, sign=-1) != first
    moved.write_text(moved.read_text() + "\n")
    assert fingerprint(moved) != first


def test_what_is_run_are_the_bytes_that_were_hashed(labeler: Path, chain: Chain) -> None:
    node = nodes(chain.root, *own(labeler))["label"]
    text = labeler.read_text()
    labeler.write_text("raise RuntimeError")  # the file changes after the plan
    from stages import label
    from stages.store.workspace import StageDir

    (chain.root / "work").mkdir()
    out = StageDir(chain.root / "work", lambda metrics, step: None)
    assert label.run(node.config, {"pool": chain.folder("sample")}, out)["labeler"] == "mine"
    assert (out / "own.py").read_text() == text
    Path(node.config.own.file).write_text(text + "\n")
    with pytest.raises(UserError, match="has changed"):
        label.run(node.config, {"pool": chain.folder("sample")}, out)


@pytest.mark.slow
def test_jobs_of_a_sweep_in_other_processes_run_it_too(labeler: Path, chain: Chain) -> None:
    ran = command(
        *TINY,
        f"outputs={chain.root}",
        "stage=pairs",
        *own(labeler),
        "pairs.seed=1,2",
        "hydra/launcher=joblib",
        "-m",
    )
    assert ran.returncode == 0, ran.stderr
    assert chain.count()["pairs"] == 3
    assert chain.count()["label"] == 2


@pytest.mark.extended
@pytest.mark.parametrize(
    ("content", "typed", "message"),
    [
        (f"{OWN}label: {{own: {{file: FILE, name: Mine}}}}", (), ONLY_TYPED),
        (
            f"{OWN}label: {{own: {{file: FILE, name: Mine}}}}",
            ("label.own.options={sign: 1}",),
            ONLY_TYPED,
        ),
        (
            f"{OWN}hydra: {{mode: MULTIRUN, sweeper: {{params: {{label.own.file: FILE, label.own.name: Mine}}}}}}",
            (),
            ONLY_TYPED,
        ),
        (
            "hydra: {overrides: {task: ['label.own={file: FILE, name: Mine}']}}\nlabel.own: {file: FILE}",
            (),
            "recipes/hostile.yaml sets hydra.overrides.",
        ),
        (
            "hydra: {callbacks: {mine: {_target_: mine.Mine}}}",
            (),
            "recipes/hostile.yaml sets hydra.callbacks",
        ),
        (
            "hydra: {sweeper: {_target_: mine.Mine}}",
            (),
            "recipes/hostile.yaml sets hydra.sweeper._target_",
        ),
    ],
)
def test_a_recipe_must_not_name_it(
    content: str, typed: tuple[str, ...], message: str, labeler: Path, chain: Chain
) -> None:
    recipe = RECIPES / "hostile.yaml"
    recipe.write_text(f"defaults:\n  - tiny\n{content.replace('FILE', str(labeler))}\n")
    try:
        ran = inside(
            "recipe=hostile", "tracker=none", f"outputs={chain.root}", "stage=label", *typed
        )
        assert ran.returncode != 0
        assert message in ran.stderr
    finally:
        recipe.unlink()
    assert not (labeler.parent / "was run").exists()


def test_a_recipe_must_not_add_options_to_what_is_typed(labeler: Path, chain: Chain) -> None:
    recipe = RECIPES / "hostile_options.yaml"
    recipe.write_text(f"defaults:\n  - tiny\n{OWN}label: {{own: {{options: {{sign: -1}}}}}}\n")
    try:
        ran = inside(
            "recipe=hostile_options",
            "tracker=none",
            f"outputs={chain.root}",
            "stage=label",
            *own(labeler),
        )
    finally:
        recipe.unlink()
    assert "label.own" in ran.stderr
    assert ran.returncode != 0
    assert not (labeler.parent / "was run").exists()


@pytest.mark.extended
def test_options_that_are_null_or_have_names_of_ours_count(labeler: Path, chain: Chain) -> None:
    fingerprints = {
        nodes(chain.root, *own(labeler, **options))["label"].fingerprint
        for options in ({}, {"sign": "null"}, {"runtime": 1}, {"runtime": 2})
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize("kind", ["pipe", "sparse", "deep"])
def test_what_is_no_file_of_a_person_is_told_before_work(
    kind: str, labeler: Path, tmp_path: Path
) -> None:
    labeler.unlink()
    if kind == "pipe":
        os.mkfifo(labeler)
    elif kind == "sparse":
        with open(labeler, "wb") as file:
            file.truncate(1 << 40)
    else:
        labeler.write_text("(" * 100_000)
    message = refused(*TINY, *own(labeler), "stage=label", f"outputs={tmp_path / 'outputs'}")
    assert message.startswith(f"label.own.file={labeler}")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("class Mine(Labeler)", "class Mine", "label.own.name=Mine: this must be a"),
        ("class Mine", "class Other", "label.own.name=Mine: the file does not define"),
        ("def judge", "def juge", "label.own.name=Mine: the class does not define judge"),
        ('name = "mine"', "other = 1", "label.own.name=Mine: the class needs an attribute name"),
        (
            "yield Judgement(prompt.id, self.name, c.candidate_id, score=",
            "yield (",
            "yields a float",
        ),
        ("enumerate(candidates):", "enumerate([candidates[0]] * 2):", "twice"),
        ("candidate_id, score", "candidate_id, error='no', score", "sets score and error"),
        ("yield Judgement", "raise SystemExit(0); yield Judgement", "could not be judged"),
        ("enumerate(candidates):", "enumerate(candidates[:1]):", "most often (144 times)"),
        (
            "self, sign=1",
            "self, minus=1",
            "label.own.options={'sign': 2}: Mine does not accept them",
        ),
        ("self.sign = sign", "self.sign = sign / 0", "label.own: line 13: ZeroDivisionError"),
        ("from stages.store", "from stagse.store", "label.own: line 4: no module"),
        ("class Mine", "clas Mine", "mine.py: the file is not valid Python"),
        ("score=(1", "score=(2", "label.own: the labeler mine"),
        ("c.candidate_id, score", "'x', score", "the labeler mine judges"),
        pytest.param(
            "score=(1 + self.sign",
            "score=(1 + self.sing",
            "could not be judged",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_wrong_with_it_is_told(
    before: str, after: str, message: str, labeler: Path, chain: Chain
) -> None:
    assert before in labeler.read_text()
    labeler.write_text(labeler.read_text().replace(before, after))
    with pytest.raises(UserError) as error:
        build(
            chain.root,
            "stage=label",
            *own(labeler, **{"sign": 2} if "sign" in before and "minus" in after else {}),
        )
    assert message in str(error.value)


WRONG_REWARDS = [
    ("return [1.0]", "returns 1 rewards for 2 completions"),
    ("return [float('nan') for _ in completions]", "the reward is nan"),
    ("return [float('inf') for _ in completions]", "the reward is inf"),
    ("return ['good' for _ in completions]", "returns the text 'good' as a reward"),
    ("return [1 / 0 for _ in completions]", "line 2: ZeroDivisionError"),
    ("return 1.0", "returns 1.0"),
    ("print('no reward')", "returns None"),
    ("return [len(each.split()) for each in completions]", "'content': TEXT"),
    ("raise SystemExit(0)", "line 2: SystemExit"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_REWARDS)
def test_a_wrong_reward_is_told_before_anything_is_built(
    line: str, message: str, tmp_path: Path
) -> None:
    file, outputs = tmp_path / "mine.py", tmp_path / "outputs"
    file.write_text(f"def Mine(completions, **columns):\n    {line}\n")
    run = (*TINY, *own(file), f"outputs={outputs}")
    for stage in (("stage=label",), ("stage=grpo", "align=grpo")):
        refusal = refused(*run, *stage)
        assert refusal.startswith("label.own: Mine ")
        assert message in refusal and "What is 2 and 3?" in refusal
    assert not [*outputs.glob("*/*/manifest.json")] and not [*outputs.glob("*/*.partial")]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("def Mine(texts): pass", {}, "label.own.name=Mine: missing a required argument: 'texts'"),
        ("def Mine(completions): pass", {"most": 2}, "unexpected keyword argument 'most'"),
        ("def Mine(task): pass", {"task": 2}, "multiple values for keyword argument 'task'"),
        ("class Mine:\n    def __call__(self): pass", {}, "Labeler, or a reward function"),
        ("Mine = 3", {}, "Labeler, or a reward function"),
        ("Mine = {}['a']\n", {}, "label.own: line 1: KeyError"),
    ],
)
def test_what_is_no_reward_function_is_told_before_anything_is_built(
    content: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(content)
    run = (*TINY, *own(tmp_path / "mine.py", **options), f"outputs={tmp_path / 'outputs'}")
    assert message in refused(*run, "stage=label")
