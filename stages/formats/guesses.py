"""Guess the columns of roles in a file that no format fits, for the question in its error. Nothing is read on a guess."""

import difflib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.config.blocks.data import Source
from stages.config.installation import read_beside
from stages.formats.answered import Answered
from stages.formats.chat import Chat
from stages.formats.chosen_rejected import ChosenRejected
from stages.formats.column_mapping import Purpose, column_names, format_name
from stages.formats.columns import (
    TEXT_METADATA,
    Path,
    nested_keys,
    normal_name,
    resolve_columns,
    top_columns,
    used_columns,
    value_at,
)
from stages.formats.compared import SIDES, Compared
from stages.formats.format import Format, is_turns
from stages.formats.labelled import Labelled
from stages.formats.prompts import Prompts
from stages.formats.readers.row import BadRow
from stages.formats.scored import Scored, Several, is_missing, parse_number
from stages.formats.texts import Texts
from stages.formats.turns import is_empty, is_turn

NEAR = {role: set(words.split()) for role, words in read_beside(__file__).items()}
# The roles that a file of each format needs, for every use of a source; the first of equally good guesses counts.
SHAPES: dict[Purpose, list[tuple[type[Format], tuple[str, ...]]]] = {
    Purpose.answers: [
        (Answered, ("prompt", "completion")),
        (Chat, ("messages",)),
        (Texts, ("text",)),
        (ChosenRejected, ("prompt", "chosen", "rejected")),
    ],
    Purpose.prompts: [(Prompts, ("prompt",)), (Prompts, ("messages",))],
    Purpose.preferences: [
        (ChosenRejected, ("prompt", "chosen", "rejected")),
        (ChosenRejected, ("chosen", "rejected")),
        (Compared, ("prompt", "a", "b", "preference")),
        (Scored, ("prompt", "completions", "scores")),
        (Labelled, ("prompt", "completion", "label")),
    ],
    Purpose.candidates: [
        (Several, ("prompt", "completions")),
        (Answered, ("prompt", "completion")),
    ],
}
ANSWERS = {"completion", "chosen", "rejected", "a", "b"}
UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss"}
NEW_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")  # customerMessage
NUMBERED = re.compile(r"_?\d+$")
LEAST_SIMILARITY = 0.8
MOST_VALUES = 20  # of a preference or a label
DEPTH = 3  # of the keys inside a column that are tried


@dataclass(frozen=True)
class Guess:
    """The columns that are read (`read`), those that are guessed for the other roles of a format, the number of roles for
    which no name speaks, and that of columns with text which would stay unread."""

    read: Mapping[str, Path]
    guessed: Mapping[str, Path]
    nameless: int
    unread: int


@dataclass(frozen=True)
class Candidate:
    """A column, or a key inside one, with its values in the first rows."""

    path: str
    values: Sequence[Any]

    @property
    def is_metadata(self) -> bool:
        """True if the column accompanies a text, by its name, or by one value in most of many rows."""
        is_repeated = len(self.values) > 3 and len({*map(str, self.values)}) < len(self.values) / 2
        return is_repeated or accompanies_text(self)


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, with letters without accents."""
    words = normal_name(NEW_WORD.sub("_", name))
    return unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().split("_")


def accompanies_text(candidate: Candidate) -> bool:
    """Return True for a column that accompanies a text, by its name."""
    return not TEXT_METADATA.isdisjoint(words_of(candidate.path.rpartition(".")[2]))


def spellings(name: str) -> list[list[str]]:
    """Return the words of a name with umlauts as one letter and as two."""
    in_two_letters = "".join(UMLAUTS.get(letter, letter) for letter in name.lower())
    return [words_of(name), words_of(in_two_letters)]


def best_guess(
    source: Source, purpose: Purpose, columns: Sequence[str], rows: Sequence[dict[str, Any]]
) -> Guess | None:
    """Return the guess with the fewest roles that no name speaks for, then with the fewest unread texts, then with the
    fewest guesses; None if no format has a column for each of its roles."""
    guesses = list[Guess]()
    for kind, roles in SHAPES[purpose]:
        if source.format not in (None, format_name(kind)):
            continue
        form = kind(source)
        names = column_names(form, columns)
        paths = resolve_columns(columns, names, source.columns)
        lacking = [role for role in roles if role not in paths]
        if "prompt" in lacking:  # an input without a request may be the request
            paths.pop("input", None)
        if "messages" in paths and "prompt" in lacking:
            lacking.remove("prompt")
        candidates = candidates_in(columns, rows, form.dropped)
        guess = guess_roles(lacking, names, paths, candidates)
        if guess and lacking and fits_together(guess, roles, candidates):
            guesses.append(guess)
    return min(guesses, key=rank, default=None)


def fits_together(guess: Guess, roles: Sequence[str], candidates: Sequence[Candidate]) -> bool:
    """Return True unless pairs lack a prompt and are no whole conversations, scores are not as many as the answers, or
    one of several texts without telling names would be all that is read."""
    if roles == ("text",) and guess.nameless and guess.unread:
        return False
    columns = {**guess.read, **guess.guessed}
    by_path = {each.path: each for each in candidates}
    held = {role: by_path[str(path)] for role, path in columns.items() if str(path) in by_path}
    if "chosen" in held and "prompt" not in roles:
        return all(holds_turns(held[side]) for side in ("chosen", "rejected") if side in held)
    if {"completions", "scores"} <= held.keys():
        return holds_lists(held["completions"]) == holds_lists(held["scores"])
    return True


def rank(guess: Guess) -> tuple[int, int, int]:
    """Return the place of a guess among others, the best first."""
    return guess.nameless, guess.unread, len(guess.guessed)


def candidates_in(
    columns: Sequence[str], rows: Sequence[dict[str, Any]], dropped: set[str]
) -> list[Candidate]:
    """Return the columns, and the keys inside columns, with their values."""
    paths = [column for column in columns if column not in dropped]
    candidates = list[Candidate]()
    for path in paths:  # which grows
        values = [value_at(row, path) for row in rows]
        values = [value for value in values if not is_empty(value)]
        candidates.append(Candidate(path, values))
        candidate = candidates[-1]
        if path.count(".") < DEPTH and not holds_turns(candidate):
            keys = dict.fromkeys(key for value in values for key in nested_keys(value))
            paths += [f"{path}.{key}" for key in keys]
    return candidates


def guess_roles(
    lacking: Sequence[str],
    names: Mapping[str, str],
    read: Mapping[str, Path],
    candidates: Sequence[Candidate],
) -> Guess | None:
    """Return the guess for the roles that lack a column: by the candidates' names, else by what they hold. None if a role
    gets no candidate."""
    used = used_columns(read.values())
    free = [each for each in candidates if used.isdisjoint(top_columns(each.path))]
    guessed = dict[str, Path](sides_in(free) if {"a", "b"} <= {*lacking} else {})
    free = [each for each in free if each.path not in guessed.values()]
    for role in lacking:
        if role in guessed:
            continue
        fitting = [each for each in free if FITS[role](each)]
        near = near_names(role, names.get(role, ""), [each.path for each in fitting])
        if near:
            chosen = near[:1]
            if role == "rejected":  # several rejected answers have columns of their own
                stem = NUMBERED.sub("", near[0])
                chosen = [path for path in near if NUMBERED.sub("", path) == stem]
            guessed[role] = chosen if len(chosen) > 1 else chosen[0]
            free = [each for each in free if each.path not in chosen]
    nameless = [role for role in lacking if role not in guessed]
    for role in nameless:
        fitting = [each for each in free if FITS[role](each) and not each.is_metadata]
        if role in ANSWERS and not fitting:  # many rows may have one answer: No.
            fitting = [each for each in free if FITS[role](each) and not accompanies_text(each)]
        if not fitting:
            return None
        guessed[role] = fitting[0].path
        free = [each for each in free if each is not fitting[0]]
    unread = [each for each in free if holds_text(each) and not each.is_metadata]
    return Guess(read, {role: guessed[role] for role in lacking}, len(nameless), len(unread))


def sides_in(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Return the columns of two answers, whose names differ by the marks of two sides at their ends; {} without such."""
    names = {normal_name(each.path): each.path for each in candidates if holds_answer(each)}
    for name, path in names.items():
        for first_end, second_end in SIDES.items():
            other = name.removesuffix(first_end) + second_end
            if name.endswith(first_end) and other in names:
                return {"a": path, "b": names[other]}
    return {}


def near_names(role: str, names: str, paths: Sequence[str]) -> list[str]:
    """Return the paths whose names speak for a role, the surest first: by the last word, any word, or the letters."""
    known = {part for name in names.split() for part in name.split("+")}
    words = NEAR[role] | {name for name in known if "_" not in name}
    last_word, any_word, letters = list[str](), list[str](), list[str]()
    for path in paths:
        name = NUMBERED.sub("", path.rpartition(".")[2])
        forms = spellings(name)
        if any(form[-1] in words for form in forms):
            last_word.append(path)
        elif any(not words.isdisjoint(form) for form in forms):
            any_word.append(path)
        elif difflib.get_close_matches(normal_name(name), known, 1, LEAST_SIMILARITY):
            letters.append(path)
    return [*last_word, *any_word, *letters]


def holds_text(candidate: Candidate) -> bool:
    return bool(candidate.values) and all(isinstance(value, str) for value in candidate.values)


def holds_turns(candidate: Candidate) -> bool:
    """Return True for transcripts, and for lists in which an object has a role."""
    return bool(candidate.values) and all(
        is_turns(value) and (isinstance(value, str) or any(map(is_turn, value)))
        for value in candidate.values
    )


def holds_answer(candidate: Candidate) -> bool:
    return holds_text(candidate) or holds_turns(candidate)


def holds_choice(candidate: Candidate) -> bool:
    """Return True for a few different single values."""
    are_single = all(isinstance(value, str | int | float) for value in candidate.values)
    return bool(candidate.values) and are_single and len({*candidate.values}) <= MOST_VALUES


def holds_lists(candidate: Candidate) -> bool:
    return all(isinstance(value, list) for value in candidate.values)


def holds_answers(candidate: Candidate) -> bool:
    """Return True for lists of several answers that are no conversations."""
    are_lists = all(isinstance(value, list) and len(value) > 1 for value in candidate.values)
    return bool(candidate.values) and are_lists and not holds_turns(candidate)


def holds_texts(candidate: Candidate) -> bool:
    """Return True for lists of texts, and for one text in each row."""
    if not holds_answers(candidate):
        return holds_text(candidate)
    return all(isinstance(item, str) for value in candidate.values for item in value)


def holds_scores(candidate: Candidate) -> bool:
    """Return True for lists of numbers, also as texts; words may stand among them."""
    if not holds_answers(candidate):
        return False
    items = [item for value in candidate.values for item in value if not is_missing(item)]
    return bool(items) and all(map(is_number, items))


def is_number(value: Any) -> bool:
    try:
        parse_number(value)
    except BadRow:
        return False
    return not isinstance(value, bool)


def holds_numbers(candidate: Candidate) -> bool:
    """Return True for lists of numbers, and for one number in each row."""
    are_numbers = all(type(value) in (int, float) for value in candidate.values)
    return holds_scores(candidate) or (bool(candidate.values) and are_numbers)


FITS: dict[str, Callable[[Candidate], bool]] = {
    "prompt": holds_answer,
    "messages": holds_turns,
    "completion": holds_text,
    "chosen": holds_answer,
    "rejected": holds_answer,
    "a": holds_answer,
    "b": holds_answer,
    "preference": holds_choice,
    "completions": holds_texts,
    "scores": holds_numbers,
    "label": holds_choice,
    "text": holds_text,
}


def find_ids(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the columns of token ids: lists of whole numbers under a known name."""
    return [
        column
        for column in columns
        if normal_name(column) in NEAR["ids"]
        and all(
            isinstance(row.get(column), list) and all(type(item) is int for item in row[column])
            for row in rows
        )
    ]
