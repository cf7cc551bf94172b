"""Checks of `eval.judged`: who judges, which models' answers are compared, and on which prompts."""

from stages.config.blocks.evaluation import NOBODY, REFERENCE
from stages.config.choices import Align, Role
from stages.config.errors import UserError, require_known
from stages.config.schema import Config
from stages.store import plugins

LABELED = ("dataset", "verifier")  # labelers that cannot compare two new answers without checks


def validate_judged(cfg: Config) -> None:
    """Raise UserError for the first setting of `eval.judged` that cannot work, or if `align=none` compares nothing."""
    judged = cfg.eval.judged
    labelers = [NOBODY, *(word for word in plugins.plugin_words("labelers", "Labeler") if word not in LABELED)]
    require_known("eval.judged.labeler", [str(judged.labeler)], labelers)
    untrained = cfg.align is Align.none and not cfg.sft.train  # the policy is the base model itself
    if untrained and not judged.folders:
        raise UserError(
            "align=none sft=none trains nothing, so there is nothing to compare. Name another model: "
            "eval.judged.against=[FOLDER]."
        )
    if not judged.is_requested:
        return
    roles = [Role.base, Role.sft, *([Role.control] if cfg.control else []), REFERENCE]
    if cfg.align is Align.none:
        roles = [Role.sft, REFERENCE] if untrained else [Role.base, Role.sft, REFERENCE]
    for i, name in enumerate(judged.against):
        if name in judged.against[:i]:
            raise UserError(f"eval.judged.against[{i}]={name} is named twice. Name it once.")
        if name in (*Role, REFERENCE) and name not in roles:
            raise UserError(f"eval.judged.against[{i}]={name}: not in this run. Use {', '.join(roles)} or a folder.")
    if not judged.against:
        raise UserError("eval.judged.against is empty. [sft] compares the policy's answers with those of SFT.")
    for i, source in enumerate(judged.source):
        if source.splits or source.check:
            raise UserError(f"eval.judged.source[{i}]: judges read every row. Leave splits and check out.")
    if not (judged.source or cfg.tested or cfg.align is not Align.none):
        raise UserError("eval.judged has no prompts. Name a file of them: 'eval.judged.source=[{path: FILE}]'.")
