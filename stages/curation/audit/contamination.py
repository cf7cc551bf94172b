"""A search for evaluation prompts in training texts: verbatim, with some words changed, or inside a longer text. Texts
are compared by runs of words, as in the decontamination of GPT-3 (arXiv:2005.14165, appendix C)."""

from collections import Counter, defaultdict
from typing import NamedTuple

from stages.store.text_units import plain_words

RUN = 3  # words in a run
SHARE = 0.5  # share of an evaluation prompt's runs that one stretch of the text must have
ROOM = 1.5  # largest ratio of that stretch's length to the prompt's length
FEWEST = 8  # words that a prompt needs to be found with changes; shorter prompts are found verbatim


class Match(NamedTuple):
    name: str  # the file and its line
    prompt: str
    share: float  # share of the prompt's runs that the text has


class HeldOut:
    """The prompts of evaluation files, indexed by their words and by their runs of words."""

    def __init__(self, share: float = SHARE) -> None:
        self.min_share = share
        self.prompts = list[tuple[str, str, int, float]]()  # name, text, number of runs, required share
        self.prompt_by_words = dict[tuple[str, ...], int]()
        self.prompts_by_run = defaultdict[tuple[str, ...], list[int]](list)

    def add(self, prompt: str, name: str) -> None:
        words = plain_words(prompt)
        number, runs = len(self.prompts), set(runs_of(words))
        self.prompt_by_words.setdefault(tuple(words), number)
        for run in runs if len(runs) > 1 else ():
            self.prompts_by_run[run].append(number)
        self.prompts.append((name, prompt, len(runs), self.min_share if len(words) >= FEWEST else 1.0))

    def find_in(self, text: str, is_whole_request: bool = True) -> Match | None:
        """Return the prompt of which a text has the largest share, or None. `is_whole_request`: the text is the only
        request of its conversation. Only then a prompt of RUN words or fewer is found, because "Why?" occurs in many
        conversations."""
        words = plain_words(text)
        exact = self.prompt_by_words.get(tuple(words)) if is_whole_request or len(words) > RUN else None
        if words and exact is not None:
            return Match(*self.prompts[exact][:2], 1.0)
        places = defaultdict[int, list[tuple[int, tuple[str, ...]]]](list)
        for i, run in enumerate(runs_of(words)):
            for number in self.prompts_by_run.get(run, ()):
                places[number].append((i, run))
        matches = [Match(*self.prompts[n][:2], self.share_in_stretch(n, hits)) for n, hits in places.items()]
        return max((match for match in matches if match.share), key=lambda match: match.share, default=None)

    def share_in_stretch(self, number: int, hits: list[tuple[int, tuple[str, ...]]]) -> float:
        """Return the largest share of a prompt's runs in one stretch of the text, or 0 below the required share.
        `hits` are the positions of the runs in the text, with each run."""
        _, _, runs, min_share = self.prompts[number]
        if len(hits) < min_share * runs:
            return 0.0
        best, start, inside = 0, 0, Counter[tuple[str, ...]]()
        for place, run in hits:
            inside[run] += 1
            while hits[start][0] < place - ROOM * runs:
                inside[hits[start][1]] -= 1
                start += 1
            best = max(best, sum(count > 0 for count in inside.values()))
        return best / runs if best >= min_share * runs else 0.0


def runs_of(words: list[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(RUN)), strict=False))
