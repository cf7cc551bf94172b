"""Assistant turns that a template marks as trained, and that are to be read only."""

from stages.models.rendering import ContractError


def masked(ids: list[int], trained: list[bool], end_of_turn: int, kept: list[bool] | None, last: bool) -> list[bool]:
    """Which tokens of a conversation are trained: those of the assistant turns that are `kept` (None: all), or of its
    `last` one alone. `trained` are those of all turns; each ends with a trained end of turn.

    Raises:
        ContractError: where the template does not mark every assistant turn, so that nothing tells whose tokens are
            whose; and where no token is left.
    """
    ends = [i for i, token in enumerate(ids) if trained[i] and token == end_of_turn]
    if kept is not None and len(kept) != len(ends):
        raise ContractError(f"the template trains {len(ends)} of {len(kept)} assistant turns, and some have a weight")
    kept = [True] * len(ends) if kept is None else kept
    if last:
        kept = [False] * (len(kept) - 1) + kept[-1:]
    turn, found = 0, list[bool]()
    for i, marked in enumerate(trained):
        found.append(marked and kept[turn])
        turn += marked and ids[i] == end_of_turn
    if not any(found):
        raise ContractError("no token is trained: the conversation's answers have weight 0")
    return found
