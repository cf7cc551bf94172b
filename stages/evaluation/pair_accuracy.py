"""Shares of pairs with the better answer chosen, with the worse one chosen, and with two equally good answers."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.config.choices import Strategy
from stages.evaluation.labelling import share
from stages.evaluation.reliability import KNOWN_WORDS, Key, read_known_words
from stages.store.records import Candidate, Example
from stages.tasks.checks import share_passed

# By sign: the chosen answer is truly better than the rejected one, worse, or as good.
VERDICTS = {1: "right", -1: "wrong", 0: "neither"}
PairsByStrategy = Mapping[Strategy, Iterable[tuple[Candidate, Candidate]]]
SIGNS = {"a": 1, "b": -1, "tie": 0}


class PairAudit:
    """Verdicts on the pairs that each strategy forms from an audited pool. They come from known labels (of a file, or
    of people) on judgements drawn at random, else from the prompts' checks."""

    def __init__(self, judged: Path):
        path = judged / KNOWN_WORDS
        self.by_checks = not path.exists()
        self.words = read_known_words(path) if path.exists() else {}
        self.keys = defaultdict[str, list[Key]](list)  # keys of `words`, by their first candidate
        for key in self.words:
            self.keys[key[0]].append(key)
        # (prompt id, sign) of each pair
        self.signs = defaultdict[Strategy, list[tuple[str, int]]](list)

    def look_up(
        self, prompt: Example, candidates: Iterable[Candidate], pairs: PairsByStrategy
    ) -> None:
        """Record the verdicts on a prompt's pairs, each with the chosen candidate first. Copies are equally good."""
        texts = {c.candidate_id: c.stripped_text for c in candidates}
        keys = (key for name in texts for key in self.keys[name] if {*key} <= texts.keys())
        words = {tuple(texts[name] for name in key): self.words[key] for key in keys}
        grades = {
            text: float(words[(text,)] == "good") for text in texts.values() if (text,) in words
        }

        def sign(better: Candidate, worse: Candidate) -> int | None:
            if word := words.get((better.stripped_text, worse.stripped_text)):
                return SIGNS[word]
            for candidate in (better, worse) if self.by_checks and prompt.checks else ():
                if candidate.stripped_text not in grades:
                    grades[candidate.stripped_text] = share_passed(prompt.checks, candidate.answer)
            if not grades.keys() >= {better.stripped_text, worse.stripped_text}:
                return None
            high, low = grades[better.stripped_text], grades[worse.stripped_text]
            return (high > low) - (high < low)

        for strategy, strategy_pairs in pairs.items():
            signs = [sign(*pair) for pair in strategy_pairs]
            self.signs[strategy] += [(prompt.id, each) for each in signs if each is not None]

    def figures(self, strategy: Strategy) -> dict[str, Any] | None:
        """Return the number of pairs with a verdict and the share of each verdict; None without any verdict."""
        signs = self.signs[strategy]
        prompts = [prompt for prompt, _ in signs]
        rates = {
            name: share([each == sign for _, each in signs], prompts)
            for sign, name in VERDICTS.items()
        }
        return (
            {"pairs": len(signs), **{name: asdict(s.rate) for name, s in rates.items() if s}}
            if signs
            else None
        )


def accuracy_clause(accuracy: Mapping[str, Any]) -> str:
    """Return a clause: `of 120 pairs with a known verdict, 76.0% are right, 7.0% wrong, and 17.0% …`."""
    right, wrong, neither = (f"{accuracy[name]['mean']:.1%}" for name in VERDICTS.values())
    pairs = f"of {accuracy['pairs']} pairs with a known verdict"
    return f"{pairs}, {right} are right, {wrong} wrong, and {neither} have equally good answers"
