"""Check that a typed key that nothing reads is refused with a way out, and that an untyped one is not."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from stages.cli.interpolations import interpolated_keys
from stages.config.blocks.sampling import CandidateFile
from stages.config.blocks.training import Untrained
from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from tests.helpers import TINY, composed, inside, needing, refuse_unread, refused, settings

FILE = "stages/tasks/toy_preferences.jsonl"
# Keys that the class of an option does not have, with the options to choose instead.
OF_OTHERS = [
    (f"label.path={FILE}", "label=dataset or label=reward_model"),
    ("eval.judged.seed=1", "eval/judged=judge" + " or eval/judged=human" * ("human" in EXTRAS)),
    ("sample.columns={prompt:q}", "sample=file"),
    ("sft.learning_rate=1e-4 sft=none", "sft=default"),
]
# Typed arguments, of which nothing reads the first, and the arguments with which it is read.
UNREAD = [
    ("unpaired.threshold=0.5 label=judge align=kto", "label=verifier"),
    ("unpaired.threshold=0.5", "align=kto"),
    ("eval.judged.against=[base]", "eval/judged=judge"),
    ("reward.source.format=labelled stage=reward", f"reward.source.path={FILE}"),
    (f"sample.prompts=5 label=dataset label.path={FILE}", "label=verifier label.path=null"),
    ("select.min_score=0.5", "sft.demonstrations=selected"),
    ("dpo.lora.rank=8 sft.adapter=lora dpo.adapter=continued", "dpo.adapter=lora"),
    ("reward.learning_rate=1e-5", f"reward.source.path={FILE}"),
    ("pairs.max_per_prompt=2", "pairs=all"),
    ("control_learning_rate=1e-4", "control=true"),
    ("data.form.unicode=NFC", "data.sources=[{path:README.md}]"),
]
OF_EXTRAS = {
    "benchmarks": ("benchmark.limit=5", "benchmark.tasks=[x]"),
    "suites": ("eval.suites.pairs=20", "eval.suites.names=[refusal]"),
}
UNREAD += [case for extra, case in OF_EXTRAS.items() if extra in EXTRAS]


def reads(*typed: str) -> None:
    """Raise UserError if nothing reads one of these arguments. Hydra composes each choice of groups only once."""
    groups = [each for each in typed if "." not in each.partition("=")[0]]
    cfg = composed(*TINY, *groups)
    for override in OverridesParser.create().parse_overrides(
        [each for each in typed if each not in groups]
    ):
        OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    refuse_unread(OmegaConf.to_object(cfg), typed, interpolated_keys(cfg))  # type: ignore[arg-type]


@pytest.mark.parametrize(("typed", "added"), UNREAD, ids=[typed for typed, _ in UNREAD])
def test_it_is_refused_with_its_key_and_read_beside_what_reads_it(typed: str, added: str) -> None:
    with pytest.raises(UserError) as error:
        reads(*typed.split())
    line = str(error.value)
    first = typed.split()[0]
    assert line.startswith(f"{first}: ") and line.endswith(" leave the key out."), line
    assert any(key.partition("=")[0] in line for key in added.split()), line
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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("label: {comparisons: 5}", "label.comparisons: label=verifier"),
        ("defaults: [override /sft: none]\nsft: {epochs: 2}", "sft.epochs: sft=none"),
    ],
)
def test_a_recipe_with_a_key_of_another_option_is_refused(
    text: str, problem: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(f"{text}\n")
    message = refused(f"recipe={recipe}")
    assert message.startswith(f"{recipe}: {problem} does not have this key.")


def test_a_typed_option_leaves_out_what_a_recipe_says_of_another_one() -> None:
    """The rest of the recipe stays."""
    cfg = settings(*TINY, "sample=file", "sample.file=README.md", "sft=none")
    assert isinstance(cfg.sample, CandidateFile) and isinstance(cfg.sft, Untrained)
    assert cfg.dpo.learning_rate == settings(*TINY).dpo.learning_rate == 1e-3
    with pytest.raises(HydraException):
        composed(*TINY, "sample=file", "sample.top_p=0.5")


# Keys that need another value in their own block, which a recipe may lack as well
OF_VALUES = [
    ("dpo.simpo_gamma=1", "dpo.loss_type=[simpo]"),
    ("dpo.reference=sft dpo.loss_type=[simpo]", "needs no reference"),
]


@pytest.mark.parametrize(("typed", "way_out"), OF_VALUES, ids=[typed for typed, _ in OF_VALUES])
def test_a_key_without_the_value_that_it_needs_is_refused(typed: str, way_out: str) -> None:
    message = refused("recipe=tiny", "tracker=none", *typed.split())
    assert message.startswith(typed.partition("=")[0]) and way_out in message


@pytest.mark.parametrize(
    "typed",
    [
        "sample.runtime.batch_size=8 align=grpo sft.demonstrations=selected",
        "label.seed=1 label=judge align=none sft.demonstrations=selected",
        "data.form.unicode=NFC eval/judged=judge eval.judged.source=[{path:README.md}]",
    ],
)
def test_what_demonstrations_and_judged_prompts_read_is_taken(typed: str) -> None:
    reads(*typed.split())
    with pytest.raises(UserError):
        reads(*typed.split()[:-1])


INTERPOLATED = [
    ("pairs.validation_fraction=0.3", "align=kto"),
    ("pairs.unfinished=drop", "align=kto"),
    needing("examine", "examine.before=README.md", "model=before"),
    ("dpo.beta=0.3", "align=kto kto.beta=${dpo.beta}"),
    ("pairs.min_score=0.3", "align=kto unpaired.threshold=${pairs.min_score}"),
    (
        "dpo.batch_size=8",
        "align=kto kto.batch_size=${grpo.batch_size} grpo.batch_size=${dpo.batch_size}",
    ),
    ("dpo.lora.rank=4", "align=kto kto.adapter=lora kto.lora.rank=${...dpo.lora.rank}"),
    ("dpo.lora.rank=4", "align=kto kto.adapter=lora kto.lora=${dpo.lora}"),
]


@pytest.mark.parametrize(("typed", "reader"), INTERPOLATED)
def test_a_key_is_read_through_the_keys_that_have_its_value(typed: str, reader: str) -> None:
    reads(typed, *reader.split())
    with pytest.raises(UserError, match="leave the key out"):
        reads(typed, "align=none", *reader.split()[1:])


def test_kto_reads_the_reference_that_simpo_beside_it_does_not() -> None:
    reads("dpo.loss_type=[simpo]", "arms=[kto]", "reference.precision=bf16")
    with pytest.raises(UserError, match=r"needs no reference"):
        reads("dpo.loss_type=[simpo]", "reference.precision=bf16")


@pytest.mark.extended
def test_what_sets_nothing_may_wait_unread() -> None:
    """Null, one round and no control set nothing."""
    reads("model.revision=null")
    reads("align=grpo", "rounds=1", "control=false", "control_pairs=null")
    reads("align=kto", "rounds=1", "control=false")
    # which label=dataset implies
    reads("align=kto", "label=dataset", f"label.path={FILE}", "pairs=all")


def test_a_job_of_a_sweep_warns_of_what_another_job_may_read(tmp_path: Path) -> None:
    line = (*TINY, f"outputs={tmp_path}", "stage=plan", "dpo.lora.rank=4", "-m")
    ran = inside(*line, "dpo.adapter=none,lora")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("To build") == 2
    assert ran.stdout.count("warning: dpo.lora.rank=4: dpo.adapter=none") == 1
