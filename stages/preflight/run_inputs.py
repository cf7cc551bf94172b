"""Checks of what a run starts from: the models, the rows, the labels, and the objectives that share them."""

from stages.config.blocks.draws import ONE_POOL
from stages.config.blocks.labels import Ensemble
from stages.config.choices import Align, ControlPairs, Demonstrations, Strategy
from stages.config.errors import UserError
from stages.config.schema import Config
from stages.config.stage_table import Target


def validate_single_base(cfg: Config) -> None:
    """Raise UserError for two base models."""
    if cfg.model.path and cfg.model.random_init:
        raise UserError(
            f"model.path={cfg.model.path} and model.random_init exclude each other. Set one to null."
        )


def validate_rows_and_demonstrations(cfg: Config) -> None:
    """Raise UserError if there are no rows, or SFT's demonstrations are not given or cannot be selected."""
    reads_data = cfg.sft.train or not cfg.candidates_bring_prompts
    if reads_data and not cfg.data.sources and not cfg.data.generated:
        raise UserError("data.sources is empty, so there are no rows. Name a file: data.path=FILE.")
    demonstrations = vars(cfg.sft).get("demonstrations")  # which sft=none has not
    if demonstrations is Demonstrations.given and "open_sft" in cfg.data.generated:
        raise UserError(
            f"data.tasks.open_sft={cfg.data.generated['open_sft']}: open requests have no reference answers. Set "
            "sft.demonstrations=null, which keeps the base model's best answers."
        )
    if demonstrations is not Demonstrations.selected:
        return
    label = cfg.label.of_demonstrations
    if not label.scores_alone:
        way_out = "Use label=verifier, or label=judge label.kind=pointwise."
        if isinstance(label, Ensemble):
            way_out = "Add {labeler: verifier} to label.members, which then scores these alone."
        raise UserError(
            f"sft.demonstrations=selected needs scores of single answers, which label={label.labeler} does not give. "
            f"{way_out}"
        )
    if label.has_trained_reward_model:
        raise UserError(
            "sft.demonstrations=selected needs a labeler before SFT. Name a trained one: label.path=FOLDER."
        )


def validate_objectives(cfg: Config) -> None:
    """Raise UserError for arms, rounds or controls that the objective or its labels cannot have."""
    if Align.raft in cfg.arms:
        raise UserError(
            "arms: raft is the control of objectives that draw. Set control=true, or align=raft."
        )
    for i, arm in enumerate(cfg.arms):
        others = (Align.none, cfg.align, *cfg.arms[:i])
        if cfg.align is Align.none or arm in others:
            raise UserError(
                f"arms[{i}]={arm}: name an objective other than align={cfg.align}, once. Leave it out."
            )
    if cfg.label.brings_pool and cfg.rounds > 1:
        raise UserError(
            f"rounds={cfg.rounds}: label=dataset has the same pairs in every round. Use rounds=1."
        )
    if cfg.control_pairs is ControlPairs.random and cfg.pairs.strategy is Strategy.random:
        raise UserError(
            "control_pairs=random: pairs=random are such pairs already. Set control_pairs=coin."
        )
    has_controls = cfg.rounds > 1 or (cfg.control and not cfg.drawing) or cfg.control_pairs
    if cfg.objectives and not cfg.learns_from_pairs and has_controls:
        raise UserError(
            f"align={cfg.align}: rounds and controls are DPO's. Set rounds=1 control=false control_pairs=null."
        )
    policy = cfg.drawing.get(cfg.align)
    if cfg.control and policy and policy.title == ONE_POOL:
        raise UserError(
            f"control=true: {cfg.align}.sync_every=0 is the control of best draws itself. Leave one of them out."
        )


def validate_reward(cfg: Config) -> None:
    """Raise UserError for a labeler without a reward model, or a reward margin without score differences."""
    source = cfg.reward.source
    for label in cfg.labels:
        for part in label.parts:
            if part.has_trained_reward_model and not source.path:
                raise UserError(
                    f"{part.option} needs a reward model. Set {part.block}.path=FOLDER, or train one on "
                    "reward.source.path=FILE."
                )
    if cfg.stage == Target.reward and cfg.reward.margin and not source.path:
        estimates_differences = cfg.pairs.strategy in (Strategy.ranked, Strategy.margin)
        if cfg.label.prefers and not estimates_differences:
            raise UserError(
                f"reward.margin=true: label={cfg.label.labeler} gives no score differences. Set reward.margin=false, "
                "or use pairs=ranked."
            )
