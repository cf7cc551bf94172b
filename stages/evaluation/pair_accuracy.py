"""Shares of pairs that are the right way round, the wrong way round, or neither, by what is known of candidates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.config.choices import Strategy
from stages.evaluation.labelling import share
from stages.evaluation.reliability import KNOWN_WORDS, Key, from_file
from stages.store.records import Candidate, Example
from stages.tasks.checks import share_passed

# The chosen answer is better than the rejected one, worse, or as good.
VERDICTS = {1: "right", -1: "wrong", 0: "neither"}
SIGNS = {"a": 1, "b": -1, "tie": 0}


class PairAudit:
    """Verdicts on the pairs that each strategy takes of an audited pool: by the words of a file or of people on
    judgements drawn at random, else by the checks of every prompt."""

    def __init__(self, judged: Path):
        path = judged / KNOWN_WORDS
        self.by_checks, self.words = not path.exists(), from_file(path) if path.exists() else {}
        self.keys = defaultdict[str, list[Key]](list)  # of words, by the first candidate
        for key in self.words:
            self.keys[key[0]].append(key)
        self.signs = defaultdict[Strategy, list[tuple[str, int]]](list)  # each of a prompt

    def look_up(
        self,
        prompt: Example,
        candidates: Iterable[Candidate],
        pairs: Mapping[Strategy, Iterable[tuple[Candidate, Candidate]]],
    ) -> None:
        """Note what is known of a prompt's pairs, each with the chosen candidate first. Copies are equally good."""
        texts = {c.candidate_id: c.stripped_text for c in candidates}
        keys = (key for name in texts for key in self.keys[name] if {*key} <= texts.keys())
        words = {tuple(texts[name] for name in key): self.words[key] for key in keys}
        grades = {text: float(words[(text,)] == "good") for text in texts.values() if (text,) in words}

        def sign(better: Candidate, worse: Candidate) -> int | None:
            if word := words.get((better.stripped_text, worse.stripped_text)):
                return SIGNS[word]
            for candidate in (better, worse) if self.by_checks and prompt.checks else ():
                if candidate.stripped_text not in grades:
                    grades[candidate.stripped_text] = share_passed(prompt.checks, candidate.text)
            if not grades.keys() >= {better.stripped_text, worse.stripped_text}:
                return None
            high, low = grades[better.stripped_text], grades[worse.stripped_text]
            return (high > low) - (high < low)

        for strategy, its_pairs in pairs.items():
            signs = [sign(*pair) for pair in its_pairs]
            self.signs[strategy] += [(prompt.id, each) for each in signs if each is not None]

    def figures(self, strategy: Strategy) -> dict[str, Any] | None:
        """Return how many pairs something is known of, and the share of each verdict among them; None of none."""
        signs = self.signs[strategy]
        prompts = [prompt for prompt, _ in signs]
        rates = {name: share([each == sign for _, each in signs], prompts) for sign, name in VERDICTS.items()}
        return {"pairs": len(signs), **{name: s.rate.told() for name, s in rates.items() if s}} if signs else None


def in_words(accuracy: Mapping[str, Any]) -> str:
    """`of 120 pairs of which it is known, 76.0% are the right way round, 7.0% the wrong way round, 17.0% neither`"""
    right, wrong, neither = (f"{accuracy[name]['mean']:.1%}" for name in VERDICTS.values())
    return (
        f"of {accuracy['pairs']} pairs of which it is known, {right} are the right way round, {wrong} the wrong way "
        f"round, {neither} neither"
    )
