"""Check that a typed key that nothing reads is refused with a way out, and that an untyped one is not."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stages.cli import main, unread
from stages.config.blocks.sampling import Sample
from stages.config.errors import UserError
from stages.config.schema import RECIPES, Export, Tracker
from tests.helpers import TINY, Chain, composed, inside, refused

FILE = "stages/tasks/toy_preferences.jsonl"
JUDGE = "label=judge label.endpoints=[{base_url:'http://127.0.0.1:1',model:x}]"
POOL = "sample.pool=[{n:2,temperature:0.5},{file:README.md}]"
# Keys that the class of an option does not have, with the options to choose instead.
OF_OTHERS = [
    (f"label.path={FILE}", "label=dataset or label=reward_model"),
    ("label.format=kto", "label=dataset"),
    ("label.columns={prompt:q}", "label=dataset"),
    ("label.hub_split=train", "label=dataset"),
    ("label.seed=1", "label=judge or label=human"),
    ("label.rubric=r.jinja label=human", "label=judge"),
    ("label.answers=3", "label=human"),
    ("label.precision=fp32", "label=reward_model"),
    ("label.own={file:a.py,name:A}", "label=own or label=ensemble"),
    ("label.people=5 label=judge", "label=ensemble"),
    ("sft.template.path=README.md", "template=file"),
    ("eval.judged.seed=1", "eval/judged=judge or eval/judged=human"),
    ("eval.judged.path=x eval/judged=judge", "eval/judged=reward_model"),
]
# Typed arguments, of which nothing reads the first, and the arguments with which it is read.
UNREAD = [
    (f"label.revision=main label=dataset label.path={FILE}", "label.path=someone/preferences"),
    ("label.revision=main label=reward_model label.path=.", "label.path=a/b"),
    ("unpaired.threshold=0.5 label=human align=kto", "label=verifier"),
    ("unpaired.threshold=0.5", "align=kto"),
    ("benchmark.limit=5", "benchmark.tasks=[x]"),
    ("eval.suites.pairs=20", "eval.suites.names=[refusal]"),
    ("reward.pairs.min_margin=0.5", f"reward.source.path={FILE}"),
    ("pairs.min_score=0.5 label=human", "label=verifier"),
    (f"sample=generate label=dataset label.path={FILE}", "label=verifier label.path=null"),
    (
        f"sample.temperatures=[0.5] label=dataset label.path={FILE}",
        "label=verifier label.path=null",
    ),
    (f"sample.prompts=5 label=dataset label.path={FILE}", "label=verifier label.path=null"),
    ("sample.temperatures=[0.5] sample.file=README.md", "sample.file=null"),
    ("sample.top_p=0.5 sample.file=README.md", "sample.file=null"),
    ("sample.endpoint.model=x", "sample=openai sample.endpoint.base_url=http://a"),
    ("sample.columns={prompt:q}", "sample.file=README.md"),
    ("sample.max_failed=0.5", "sample.file=README.md"),
    (f"sample.candidates_per_prompt=3 {POOL}", "sample.pool=null"),
    (f"sample.temperatures=[0.3] {POOL}", "sample.pool=null"),
    ("select.min_score=0.5", "sft.demonstrations=selected"),
    ("sft.lora.rank=8", "sft.adapter=lora"),
    ("dpo.lora.rank=8 sft.adapter=lora dpo.adapter=continued", "dpo.adapter=lora"),
    ("reward.lora.rank=8", "reward.adapter=lora"),
    ("sft.learning_rate=1e-4 sft=none", "sft=default"),
    ("sft.trainer.weight_decay=0.1 sft=none", "sft=default"),
    ("sft.runtime.sample_tokens=9 sft.runtime.samples=0", "sft.runtime.samples=2"),
    ("dpo.runtime.sample_tokens=9 dpo.evaluations=0", "dpo.evaluations=2"),
    ("pairs.max_per_prompt=2", "pairs=all"),
    ("control_learning_rate=1e-4", "control=true"),
    ("reward.source.format=kto", f"reward.source.path={FILE}"),
    (
        f"reward.source.hub_split=train reward.source.path={FILE}",
        "reward.source.path=someone/preferences",
    ),
    ("model.revision=main", "model.path=someone/model"),
    ("data.form.unicode=NFC", "data.sources=[{path:README.md}]"),
    ("data.audit.actions={echo:drop}", "data.sources=[{path:README.md}]"),
    (
        "data.audit.thresholds={near_duplicate:0.9} data.sources=[{path:README.md}]",
        "data.audit.actions={near_duplicate:drop}",
    ),
    ("tracker.project=mine", "tracker=wandb"),
    ("tracker.entity=mine tracker=tensorboard", "tracker=wandb"),
    ("export.repo=user/name stage=export", "export.format=dataset"),
    ("export.private=false stage=export export.format=dataset", "export.repo=user/name"),
    ("export.dtype=f16 stage=export export.format=dataset", "export.format=gguf"),
    ("export.model=sft stage=export export.format=dataset", "export.format=gguf"),
    ("chat.model=sft stage=chat chat.side_by_side=true", "chat.side_by_side=false"),
]


def reads(*typed: str) -> None:
    """Raise UserError if nothing reads one of these arguments. Hydra composes each choice of groups only once."""
    groups = [each for each in typed if "." not in each.partition("=")[0]]
    cfg = composed(*TINY, *groups)
    for override in OverridesParser.create().parse_overrides(
        [each for each in typed if each not in groups]
    ):
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    unread.refuse_unread(OmegaConf.to_object(cfg), list(typed))


@pytest.mark.parametrize(("typed", "added"), UNREAD, ids=[typed for typed, _ in UNREAD])
def test_it_is_refused_with_its_key_and_read_beside_what_reads_it(typed: str, added: str) -> None:
    with pytest.raises(UserError) as error:
        reads(*typed.split())
    line, first = str(error.value), typed.split()[0]
    assert line.startswith(f"{first}: ") and line.endswith(" the key out."), line
    if way := re.search(r"\. Add (\S+), or leave", line):
        assert way[1].partition("=")[0] in added
    replaced = {key.partition("=")[0] for key in added.split()}
    others_typed = [each for each in typed.split() if each.partition("=")[0] not in replaced]
    reads(*others_typed, *added.split())


@pytest.mark.parametrize(("typed", "options"), OF_OTHERS, ids=[typed for typed, _ in OF_OTHERS])
def test_a_key_of_another_option_is_unknown_and_told_with_the_options_that_have_it(
    typed: str, options: str
) -> None:
    key = typed.partition("=")[0]
    message = refused("recipe=tiny", *typed.split())
    assert message.startswith(f"{key}: ") and "does not have this key" in message
    assert message.endswith(f" Add {options}, or leave the key out.")


def test_a_recipe_with_a_key_of_another_option_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text("label: {comparisons: 5}\n")
    message = refused(f"recipe={recipe}")
    assert message.startswith(
        f"{recipe}: label.comparisons: label=verifier does not have this key."
    )


@pytest.mark.parametrize(
    "typed",
    [
        "sample.runtime.batch_size=8 align=grpo sft.demonstrations=selected",
        "label.seed=1 label=judge align=none sft.demonstrations=selected",
        "data.form.unicode=NFC eval/judged=human eval.judged.source=[{path:README.md}]",
    ],
)
def test_what_demonstrations_and_judged_prompts_read_is_taken(typed: str) -> None:
    reads(*typed.split())
    with pytest.raises(UserError):
        reads(*typed.split()[:-1])


def test_kto_reads_the_reference_that_simpo_beside_it_does_not() -> None:
    reads("dpo.loss_type=[simpo]", "arms=[kto]", "reference.precision=bf16")
    with pytest.raises(UserError, match=r"needs no reference"):
        reads("dpo.loss_type=[simpo]", "reference.precision=bf16")


@pytest.mark.extended
def test_what_a_group_or_a_recipe_says_may_wait_unread() -> None:
    """Null, one round and no control set nothing."""
    reads("model.revision=null")
    reads("align=grpo", "rounds=1", "control=false", "control_pairs=null")
    reads("align=kto", "rounds=1", "control=false")
    # which label=dataset implies
    reads("align=kto", "label=dataset", f"label.path={FILE}", "pairs=all")
    recipe = RECIPES / "waiting.yaml"
    recipe.write_text("defaults: [tiny]\nsft: {lora: {rank: 4}}\n")
    try:
        ran = inside("recipe=waiting", "tracker=none", "stage=plan")
    finally:
        recipe.unlink()
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_jobs_of_a_sweep_take_what_another_of_them_reads(tmp_path: Path) -> None:
    line = (*TINY, f"outputs={tmp_path}", "dpo.lora.rank=4", "-m")
    ran = inside(*line, "stage=plan", "dpo.adapter=none,lora")
    assert ran.returncode == 0 and ran.stdout.count("To build") == 2, ran.stderr
    ran = inside(*line, "stage=data", "dpo.beta=0.1,0.2")
    assert ran.returncode == 1 and "error: dpo.lora.rank=4: dpo.adapter=none" in ran.stderr
    assert not Chain(tmp_path).count()


def test_the_demo_is_not_trained_in_the_place_of_a_preference_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        main, "build", lambda *_: pytest.fail("something is built before the error")
    )
    message = refused("tracker=none", f"outputs={tmp_path}", f"label.path={FILE}")
    way_out = "Add label=dataset or label=reward_model, or leave the key out."
    assert message == f"label.path: label=verifier does not have this key. {way_out}"


def test_every_key_of_a_block_with_choices_is_weighed() -> None:
    """Every key of these blocks is either always read or listed in `unread.py` or `unread.yaml`."""
    always = {
        Sample: "rounds round right_from split key file pool prompts prompts_per_round limits",
        Tracker: "wandb tensorboard mlflow trackio",
        Export: "format",
    }
    source = Path(unread.__file__).read_text(encoding="utf-8")
    listed = re.split(r"[ .]", " ".join(texts["keys"] for texts in unread.TEXTS.values()))
    for block, names in always.items():
        weighed = {key.name for key in fields(block) if f".{key.name}" in source} | {*listed}
        assert {key.name for key in fields(block)} <= weighed | {*names.split()}, block
        assert is_dataclass(block)
