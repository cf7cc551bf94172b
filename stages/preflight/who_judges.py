"""Checks of who judges: the members of `label=ensemble`, and `eval.judged` with the answers that it compares."""

from stages.config.blocks.evaluation import NOBODY, REFERENCE
from stages.config.blocks.labels import OWN, SOURCE_ORDER, Label
from stages.config.choices import Align, Demonstrations, Role, Rubrics
from stages.config.errors import UserError, name_block, require_known
from stages.config.installation import read_beside
from stages.config.schema import Config
from stages.store import plugins

# labelers that cannot compare two new answers without checks
LABELED = ("dataset", "verifier", SOURCE_ORDER)
TEXTS = read_beside(__file__)
# labelers that cannot be members, and why or what to do instead
ALONE: dict[str, str] = TEXTS["alone"]


def validate_ensembles(cfg: Config) -> None:
    """Raise UserError for an ensemble of `label` or of `eval.judged` that cannot work."""
    for label in cfg.labels:
        if label.labeler == "ensemble":
            with name_block(label.name):
                validate_members(label)
    if (
        cfg.label.labeler in ("ensemble", SOURCE_ORDER)
        and cfg.sft.demonstrations is Demonstrations.selected
    ):
        raise UserError(TEXTS["no score"].format(cfg=cfg))


def validate_members(label: Label) -> None:
    """Raise UserError for members that cannot vote together."""
    key = "label.ensemble.members"
    if len(label.voters) < 2:
        raise UserError(
            f"label=ensemble needs two members: '{key}=[{{labeler: verifier}}, {{labeler: judge}}]'."
        )
    labelers = [
        OWN,
        *(word for word in plugins.plugin_words("labelers", "Labeler") if word not in ALONE),
    ]
    for i, voter in enumerate(label.voters):
        if voter.labeler in ALONE:
            raise UserError(
                f"{key}[{i}].labeler={voter.labeler} cannot be a member: {ALONE[voter.labeler]}."
            )
        require_known(f"{key}[{i}].labeler", [voter.labeler], labelers)
        if voter.labeler in [other.labeler for other in label.voters[:i]]:
            raise UserError(
                f"{key}[{i}].labeler={voter.labeler} is named twice. Set its weight instead."
            )
        if (
            voter.veto is not None
            and voter.labeler == "judge"
            and label.judge.kind is Rubrics.pairwise
        ):
            raise UserError(
                f"{key}[{i}].veto needs scores, and this judge compares. Set label.judge.kind=pointwise."
            )
    if bool(label.own) is not (OWN in label.labelers):
        raise UserError(TEXTS["own"].format(key=key, own=OWN))
    if not any(voter.weight for voter in label.voters):
        raise UserError(f"{key}: every weight is 0, so no vote counts. Raise one.")
    if label.human.answered and not label.ensemble.people:
        raise UserError(
            "label.human.answered: this ensemble asks no people. Add label.ensemble.people=200."
        )
    for name, default in (("prompts", None), ("answers", 2), ("comparisons", 1)):
        if (value := vars(label.human)[name]) != default:
            raise UserError(TEXTS["people"].format(name=name, value=value))


def validate_judged(cfg: Config) -> None:
    """Raise UserError for the first setting of `eval.judged` that cannot work, or if `align=none` compares nothing."""
    judged = cfg.eval.judged
    labelers = [
        NOBODY,
        *(word for word in plugins.plugin_words("labelers", "Labeler") if word not in LABELED),
    ]
    require_known("eval.judged.labeler", [str(judged.labeler)], labelers)
    untrained = cfg.align is Align.none and not cfg.sft.train  # the policy is the base model itself
    if untrained and not judged.folders:
        raise UserError(TEXTS["untrained"])
    if not judged.is_requested:
        return
    if "verifier" in judged.label.labelers and (judged.source or cfg.own_prompts):
        raise UserError(
            "eval.judged.ensemble.members: the compared prompts have no checks. Leave verifier out."
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
