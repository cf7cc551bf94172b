"""Checks of `eval.judged`: the models and the prompts whose answers are compared."""

from stages.config.blocks.evaluation import REFERENCE, Compared
from stages.config.choices import Align, Role
from stages.config.errors import UserError
from stages.config.schema import Config


def validate_judged(cfg: Config) -> None:
    """Raise UserError for the first setting of `eval.judged` that cannot work, or if `align=none` compares nothing."""
    judged = cfg.eval.judged
    untrained = cfg.align is Align.none and not cfg.sft.train  # the policy is the base model itself
    if untrained and not judged.folders:
        raise UserError(
            "align=none sft=none trains nothing, so there is nothing to compare. "
            "Name another model: eval.judged.against=[FOLDER]."
        )
    if not isinstance(judged, Compared):
        return
    if "verifier" in judged.label.names and (judged.source or cfg.own_prompts):
        raise UserError(
            "eval.judged.members: the compared prompts have no checks. Leave verifier out."
        )
    controls = [name for name in (Role.control, Role.control_pairs) if vars(cfg)[name]]
    roles = [Role.base, Role.sft, *controls, *cfg.arms, REFERENCE]
    if cfg.align is Align.none:
        roles = [Role.sft, REFERENCE] if untrained else [Role.base, Role.sft, REFERENCE]
    for i, name in enumerate(judged.against):
        if name in judged.against[:i]:
            raise UserError(f"eval.judged.against[{i}]={name} is named twice. Name it once.")
        if name in (*Role, REFERENCE) and name not in roles:
            raise UserError(
                f"eval.judged.against[{i}]={name}: not in this run. Use {', '.join(roles)} or a folder."
            )
    if not judged.against:
        raise UserError(
            "eval.judged.against is empty. [sft] compares the policy's answers with those of SFT."
        )
    for i, source in enumerate(judged.source):
        if source.splits or source.check:
            raise UserError(
                f"eval.judged.source[{i}]: judges read every row. Leave splits and check out."
            )
    if not (judged.source or cfg.tested or cfg.holds_out):
        raise UserError(
            "eval.judged has no prompts. Name a file of them: 'eval.judged.source=[{path: FILE}]'."
        )
