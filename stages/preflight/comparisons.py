"""Comparisons of answers that cannot be made: who judges, whose answers, and to which prompts."""

from stages.config.blocks.evaluation import NOBODY, REFERENCE
from stages.config.choices import Align, Role
from stages.config.errors import UserError, one_of
from stages.config.schema import Config
from stages.store import plugins

LABELED = ("dataset", "verifier")  # who says nothing of two answers that were not labelled, or that nothing checks


def refuse(cfg: Config) -> None:
    """Raise UserError for the first thing that is wrong with `eval.judged`, or for an `align=none` that compares
    nothing."""
    judged = cfg.eval.judged
    labelers = [NOBODY, *(word for word in plugins.words("labelers", "Labeler") if word not in LABELED)]
    one_of("eval.judged.labeler", [str(judged.labeler)], labelers)
    untrained = cfg.align is Align.none and not cfg.sft.train  # the policy is a model that came as it is
    if untrained and not judged.folders:
        raise UserError(
            "align=none sft=none trains nothing, so that there is nothing to compare: eval.judged.against=[FOLDER] "
            "names another model."
        )
    if not judged.wanted:
        return
    roles = [Role.base, Role.sft, *([Role.control] if cfg.control else []), REFERENCE]
    if cfg.align is Align.none:
        roles = [Role.sft, REFERENCE] if untrained else [Role.base, Role.sft, REFERENCE]
    for i, name in enumerate(judged.against):
        if name in judged.against[:i]:
            raise UserError(f"eval.judged.against[{i}]={name} stands there twice: name it once.")
        if name in (*Role, REFERENCE) and name not in roles:
            raise UserError(f"eval.judged.against[{i}]={name}: this run has {', '.join(roles)}, or name a folder.")
    if not judged.against:
        raise UserError("eval.judged.against names nobody: [sft] holds the policy's answers against those of SFT.")
    for i, source in enumerate(judged.source):
        if source.splits or source.check:
            raise UserError(
                f"eval.judged.source[{i}]: all of its rows are asked, and judged: leave splits and check out."
            )
    if not (judged.source or cfg.tested or cfg.align is not Align.none):
        raise UserError("eval.judged has no prompts: 'eval.judged.source=[{path: FILE}]' names some.")
