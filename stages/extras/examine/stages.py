"""The stages of an examination."""

from stages.config.stage_record import Stage

STAGES = (
    Stage(
        "diff",
        3,
        "its folder beside the start's, key by key",
        absent="Set recipe=examine.",
        settings=("examine",),
        section="folders",
    ),
    Stage(
        "examine",
        4,
        "what is wrong with another tool's model?",
        absent="Set recipe=examine.",
        settings=("examine",),
        recipe="examine",
        shown_by="report",
    ),
)
