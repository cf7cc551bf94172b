"""Ensembles of labelers that cannot be."""

from stages.config.blocks.labels import OWN, Label
from stages.config.choices import Demonstrations, Rubrics
from stages.config.errors import UserError, in_the_name_of, one_of
from stages.config.schema import Config
from stages.store import plugins

ALONE = {  # and what to do instead
    "human": "label.ensemble.people=200 asks people where the members disagree",
    "dataset": "it brings candidates of its own, which no other member has seen",
    "ensemble": "name its members themselves",
}


def refuse(cfg: Config) -> None:
    """Raise UserError for what is wrong with `label.ensemble`, and with that of `eval.judged`."""
    for label in cfg.labels:
        if label.labeler == "ensemble":
            with in_the_name_of(label.name):
                members(label)
    if cfg.label.labeler == "ensemble" and cfg.sft.demonstrations is Demonstrations.selected:
        raise UserError(
            "sft.demonstrations=selected takes answers by their scores, and label=ensemble gives preferences."
        )


def members(label: Label) -> None:
    """Who votes, and with which weight."""
    key = "label.ensemble.members"
    if len(label.voters) < 2:
        raise UserError(
            f"label=ensemble joins two labelers or more: '{key}=[{{labeler: verifier}}, {{labeler: judge}}]'."
        )
    known = [OWN, *(word for word in plugins.words("labelers", "Labeler") if word not in ALONE)]
    for i, voter in enumerate(label.voters):
        if voter.labeler in ALONE:
            raise UserError(f"{key}[{i}].labeler={voter.labeler} is no member: {ALONE[voter.labeler]}.")
        one_of(f"{key}[{i}].labeler", [voter.labeler], known)
        if voter.labeler in [other.labeler for other in label.voters[:i]]:
            raise UserError(
                f"{key}[{i}].labeler={voter.labeler} stands there twice: a weight says how much it counts."
            )
        if voter.veto is not None and voter.labeler == "judge" and label.judge.kind is Rubrics.pairwise:
            raise UserError(f"{key}[{i}].veto goes by a score, and this judge gives none: label.judge.kind=pointwise.")
    if bool(label.own) is not (OWN in label.labelers):
        raise UserError(
            f"{key} and label.own: a labeler of your own is the member {{labeler: {OWN}}}, and "
            "label.own={file: FILE, name: NAME} says which."
        )
    if not any(voter.weight for voter in label.voters):
        raise UserError(f"{key}: every weight is 0, so nobody decides anything.")
    people(label)


def people(label: Label) -> None:
    """What is said of people, where an ensemble chooses what they are asked."""
    human, asked = label.human, label.ensemble.people
    if human.answered and not asked:
        raise UserError("label.human.answered: label.ensemble.people=200 asks people, and reads what they said.")
    for name, usual in (("prompts", None), ("answers", 2), ("comparisons", 1)):
        if vars(human)[name] != usual:
            raise UserError(
                f"label.human.{name}={vars(human)[name]}: label=ensemble asks about the two answers on which its "
                "members disagree. label.ensemble.people says how often."
            )
