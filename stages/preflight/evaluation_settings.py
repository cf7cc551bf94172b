"""Checks of the evaluation: test sets, models whose answers are compared, and whether anything is measured."""

from pathlib import Path

from stages.config.blocks.data import SPLIT_OF_GROUP
from stages.config.blocks.evaluation import REFERENCE, Compared
from stages.config.choices import Align, Role
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_record import Phase
from stages.config.stage_table import Target, stages_of

EVALUATING = stages_of(Phase.evaluation)
# Groups that measure consistency and retention, not whether training helped
NOT_OF_TRAINING = ("rephrased", "open_plain", "open_lengths")


def validate_outside_test_sets(cfg: Config) -> None:
    """Raise UserError for outside test sets of the same name, without a check or with splits."""
    file_names = [Path(test_set.path).name for test_set in cfg.outside]
    if len({*file_names}) < len(file_names):
        raise UserError(
            f"outside names {', '.join(file_names)}: file names must differ. Rename one."
        )
    for i, test_set in enumerate(cfg.outside):
        if test_set.check is None:
            raise UserError(f"outside[{i}].check=null: a test set needs one, such as check: label.")
        if test_set.splits:
            raise UserError(
                f"outside[{i}].splits={test_set.splits}: every outside row is a test. Leave splits out."
            )


def validate_measured(cfg: Config) -> None:
    """Raise UserError if the target evaluates models, and nothing measures them."""
    message = nothing_measured_message(cfg)
    if cfg.stage in EVALUATING and message:
        raise UserError(message)


def nothing_measured_message(cfg: Config) -> str:
    """Return why nothing can be evaluated: no prompt with checks, no held-out pair and no judge; else ''."""
    test_split = cfg.answer.split
    for group in cfg.data.generated:
        if SPLIT_OF_GROUP[group] == test_split and group not in NOT_OF_TRAINING:
            return ""
    for source in cfg.data.sources:
        if source.check and source.shares.get(test_split):
            return ""
    if cfg.holds_out_labels or isinstance(cfg.eval.judged, Compared):
        return ""
    stage = cfg.stage if cfg.stage in EVALUATING else Target.report
    held_out = (
        f", held-out labels ({cfg.label_block}.validation_fraction)"
        if cfg.learns_from_labels
        else ""
    )
    return (
        f"stage={stage}: nothing measures whether training helped. Add prompts with checks (data.tasks.{test_split})"
        f"{held_out} or a judge (eval/judged=judge)."
    )


def validate_judged(cfg: Config) -> None:
    """Raise UserError for the first setting of `eval.judged` that cannot work, or if `align=none` compares nothing."""
    judged = cfg.eval.judged
    is_policy_the_base = cfg.align is Align.none and not cfg.sft.train
    if is_policy_the_base and not judged.outside_models:
        raise UserError(
            "align=none sft=none trains nothing. Name a model to compare: eval.judged.against=[FOLDER]."
        )
    if not isinstance(judged, Compared):
        return
    judged.check_comparison()
    if "verifier" in judged.label.names and (judged.source or cfg.candidates_bring_prompts):
        raise UserError(
            "eval.judged.members: the compared prompts have no checks. Leave verifier out."
        )
    roles = comparable_roles(cfg)
    for i, name in enumerate(judged.against):
        if name in list(Role) and name not in roles:
            raise UserError(
                f"eval.judged.against[{i}]={name}: not in this run. Use {', '.join(roles)} or a folder."
            )
    if not (judged.source or cfg.has_prompts_to_answer or cfg.holds_out_labels):
        raise UserError("eval.judged has no prompts. Set 'eval.judged.source=[{path: FILE}]'.")


def comparable_roles(cfg: Config) -> list[str]:
    """Return the models of this run with which the policy can be compared, and the reference answers."""
    if cfg.align is not Align.none:
        controls = [*cfg.controls]
        if cfg.control_pairs:
            controls.append(Role.control_pairs)
        return [Role.base, Role.sft, *controls, *cfg.arms, REFERENCE]
    # else the policy is SFT, or the base model itself
    return [Role.base, Role.sft, REFERENCE] if cfg.sft.train else [Role.sft, REFERENCE]
