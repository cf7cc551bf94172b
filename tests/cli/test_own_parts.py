"""Tests of user-defined parts: the hashed bytes are run, nothing runs before its stage, no recipe may name them."""

from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.config.schema import RECIPES
from tests.helpers import TINY, Chain, build, inside, nodes, refused

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


@pytest.mark.extended
@pytest.mark.parametrize(
    ("content", "typed", "message"),
    [
        (f"{OWN}label: {{own: {{file: FILE, name: Mine}}}}", (), ONLY_TYPED),
        (
            f"{OWN}label: {{own: {{options: {{sign: -1}}}}}}",
            ("label.own={file: FILE, name: Mine}",),
            ONLY_TYPED,
        ),
        (
            f"{OWN}hydra: {{mode: MULTIRUN, sweeper: {{params: {{label.own.file: FILE, label.own.name: Mine}}}}}}",
            (),
            ONLY_TYPED,
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
            *("recipe=hostile", "tracker=none", f"outputs={chain.root}", "stage=label"),
            *(argument.replace("FILE", str(labeler)) for argument in typed),
        )
        assert ran.returncode != 0
        assert message in ran.stderr
    finally:
        recipe.unlink()
    assert not (labeler.parent / "was run").exists()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("class Mine", "class Other", "label.own.name=Mine: the file does not define"),
        ("def judge", "def juge", "label.own.name=Mine: the class does not define judge"),
        ("enumerate(candidates):", "enumerate([candidates[0]] * 2):", "twice"),
        ("enumerate(candidates):", "enumerate(candidates[:1]):", "most often (144 times)"),
        (
            "self, sign=1",
            "self, minus=1",
            "label.own.options={'sign': 2}: Mine does not accept them",
        ),
        ("self.sign = sign", "self.sign = sign / 0", "label.own: line 13: ZeroDivisionError"),
        ("class Mine", "clas Mine", "mine.py: the file is not valid Python"),
        ("score=(1", "score=(2", "label.own: the labeler mine"),
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
    ("return [1 / 0 for _ in completions]", "line 2: ZeroDivisionError"),
    ("return 1.0", "returns 1.0"),
]


@pytest.mark.parametrize(("line", "message"), WRONG_REWARDS)
def test_a_wrong_reward_is_told_before_anything_is_built(
    line: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    outputs = tmp_path / "outputs"
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


def test_an_option_may_be_nan(labeler: Path, tmp_path: Path) -> None:
    line = own(labeler, sign="nan")
    ran = inside(*TINY, f"outputs={tmp_path / 'store'}", "stage=plan", *line)
    assert ran.returncode == 0, ran.stderr
