"""Prompts that begin alike are read once as far as they do: the template's opening, a system prompt."""

from itertools import takewhile

WORTH = 8  # tokens that a prompt has to share: to attend to them apart costs a little for every prompt


def shared(prompts: list[list[int]]) -> tuple[list[int], list[int], list[int]]:
    """An order of the prompts, as indices; and for each of them, in that order, whose beginning it continues, as a
    place in the order, and how many tokens that is: 0 for a prompt that is read whole."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    continued, lengths = list[int](), list[int]()
    for place, index in enumerate(order):
        whole = continued[-1] if place else 0
        both = zip(prompts[order[whole]], prompts[index], strict=False)
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both)) if place else 0
        continued.append(whole if length >= WORTH else place)
        lengths.append(length if length >= WORTH else 0)
    return order, continued, lengths
