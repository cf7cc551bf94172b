"""Prompts that a model will be evaluated on, and whether a text holds one of them: as it is, or with some words
changed, or among others. By runs of words, as in the decontamination of GPT-3 (arXiv:2005.14165, appendix C)."""

from collections import Counter, defaultdict
from typing import NamedTuple

from stages.store.text_units import plain_words

RUN = 3  # words
SHARE = 0.5  # of an evaluation prompt's runs that a text must have, one after the other
ROOM = 1.5  # times as long as the prompt may be the stretch of the text that they stand in
FEWEST = 8  # words from which on a prompt is found with changes; shorter ones are found as they are


class Match(NamedTuple):
    name: str  # the file and its line
    prompt: str
    share: float  # of its runs that the text holds


class HeldOut:
    """The prompts of evaluation files."""

    def __init__(self, share: float = SHARE) -> None:
        self.enough = share
        self.prompts = list[tuple[str, str, int, float]]()  # name, text, runs, and the share of them that is enough
        self.whole, self.runs = dict[tuple[str, ...], int](), defaultdict[tuple[str, ...], list[int]](list)

    def add(self, prompt: str, name: str) -> None:
        words = plain_words(prompt)
        number, runs = len(self.prompts), set(runs_of(words))
        self.whole.setdefault(tuple(words), number)
        for run in runs if len(runs) > 1 else ():
            self.runs[run].append(number)
        self.prompts.append((name, prompt, len(runs), self.enough if len(words) >= FEWEST else 1.0))

    def found_in(self, text: str, whole: bool = True) -> Match | None:
        """The prompt of which a text holds most. `whole`: the text is all that was asked. Only there a prompt of RUN
        words or fewer is found: "Why?" stands in many conversations, and comes from none."""
        words = plain_words(text)
        same = self.whole.get(tuple(words)) if whole or len(words) > RUN else None
        if words and same is not None:
            return Match(*self.prompts[same][:2], 1.0)
        places = defaultdict[int, list[tuple[int, tuple[str, ...]]]](list)
        for i, run in enumerate(runs_of(words)):
            for number in self.runs.get(run, ()):
                places[number].append((i, run))
        found = [Match(*self.prompts[n][:2], self.share(n, hits)) for n, hits in places.items()]
        return max((match for match in found if match.share), key=lambda match: match.share, default=None)

    def share(self, number: int, hits: list[tuple[int, tuple[str, ...]]]) -> float:
        """Of a prompt's runs, the most that stand in one stretch of the text; 0 where they are not enough. `hits` are
        runs with their places."""
        _, _, runs, enough = self.prompts[number]
        if len(hits) < enough * runs:
            return 0.0
        best, start, inside = 0, 0, Counter[tuple[str, ...]]()
        for place, run in hits:
            inside[run] += 1
            while hits[start][0] < place - ROOM * runs:
                inside[hits[start][1]] -= 1
                start += 1
            best = max(best, sum(count > 0 for count in inside.values()))
        return best / runs if best >= enough * runs else 0.0


def runs_of(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(RUN)), strict=False))
