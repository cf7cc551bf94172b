"""Write the rows of a labelled set as instructions (FLAN, arXiv:2109.01652).

A task is a YAML file of phrasings: Jinja templates of a request, answered by the template `answer` or by one of their
own. Each row gets a phrasing drawn by the row's content, among those whose variables the row has. `columns` maps roles
to column names, and `labels` maps labels to words. In a template, `options` lists labels one a line, and `choices` in
a sentence, in an order drawn with the phrasing. A row's own options are chosen by name, letter, number or text."""

import pathlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from textwrap import shorten
from typing import Any

import yaml

from stages.config.blocks.data import Source
from stages.config.errors import UserError, suggest
from stages.config.override_text import override
from stages.formats.columns import Path, parse_cell
from stages.formats.format import Format, ParsedRow
from stages.formats.readers.row import BadRow, Way
from stages.formats.turns import require_list, require_text
from stages.store import plugins
from stages.store.bounded_yaml import parse_bounded
from stages.store.records import content_id
from stages.store.source_files import read_template
from stages.store.templates import Refusal, TemplateFault, guard_template, read_variables, render

FOLDER = pathlib.Path(__file__).with_name("tasks")
MAX_SHOWN = 200  # characters of labels in a note
MAX_WORDS = 100  # labels in an error
MAX_OPTIONS = 8  # labels in `options`
LABEL_VARIABLES = {"label", "options", "choices"}
NO_LABEL = "-1"  # `datasets` writes this for a row without a label
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTION_MARK = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*")  # before an option: A)


class Phrased(Format):
    learns_all = True

    def __init__(self, source: Source):
        super().__init__(source)
        task = read_task(str(source.task))
        self.roles, self.needs = task["columns"], task["needs"]
        self.words = {key.lower(): word for key, word in task["labels"].items()} | self.labels
        # Some phrasings ask for the text and not for the label, and a check can only compare labels.
        usable_pairs = [
            pair for pair in phrasing_pairs(task) if not source.check or pair[1] == task["answer"]
        ]
        self.phrasings = [
            (ask, answer, read_variables(ask) | read_variables(answer))
            for ask, answer in usable_pairs
        ]
        self.label_words = list[str]()
        # the number that means the first option, if labels are numbers
        self.first_number: int | None = None

    def learn(
        self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str
    ) -> None:
        """Collect the labels of all rows, or for rows with options the number of the first option."""
        distinct_words = dict[str, None]()
        if "options" in self.roles:
            self.first_number = first_option_number(
                (str(row["label"]), row["options"]) for row in rows
            )
            return
        wordless = dict[str, str]()
        block, _, _ = labels.rpartition(".")
        for row in rows if "label" in self.roles else ():
            if "label" in row and (str(row["label"]) != NO_LABEL or NO_LABEL in self.words):
                try:
                    distinct_words[self.label_word(row["label"])] = None
                except BadRow as bad:
                    if bad.ways:
                        error = bad.at(str(names["label"])).typed(block)
                        raise UserError(f"{error}.") from bad
                    wordless.setdefault(self.label_text(row["label"]), bad.reason)
        if wordless:
            words = {label: f"class {label}" for label in sorted(wordless)[:MAX_WORDS]}
            way = f"Type {override(labels, words)}, with a word for each label"
            raise UserError(f"{names['label']}: {next(iter(wordless.values()))}. {way}.")
        self.label_words = sorted(distinct_words)

    def remarks(self) -> list[str]:
        """Return notes for the user: the labels, and those whose first word, and so first token, is the same."""
        first_words = Counter(word.split()[0].lower() for word in self.label_words)
        alike = [word for word in self.label_words if first_words[word.split()[0].lower()] > 1]
        kinds = (("labels", self.label_words), ("labels share their first word", alike))
        return [
            f"{len(words)} {kind}: {shorten(', '.join(words), MAX_SHOWN)}"
            for kind, words in kinds
            if words
        ]

    def label_text(self, label: Any) -> str:
        """Return the label, or the only label of a list, in the word that `labels` gives for it."""
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if isinstance(label, list | dict):
            first = Way({"columns": {"label": "COLUMN.0"}}, "to read the first")
            raise BadRow("label", f"must be one label, is {label!r:.40}", first)
        name = str(label).strip()
        return self.words.get(name.lower()) or self.words.get(name.lower().removesuffix(".0"), name)

    def label_word(self, label: Any) -> str:
        """Return a label in words: banking's `card_arrival` is card arrival."""
        name = self.label_text(label)
        if name == NO_LABEL:
            raise BadRow("label", f"is {NO_LABEL}: the row has no label")
        word = name.replace("_", " ").strip()
        if not any(letter.isalpha() for letter in word):
            raise BadRow("label", f"{name!r} is not a word")
        return word

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        texts_by_role = {role: value for role, value in row.items() if role not in LABEL_VARIABLES}
        values = {
            role: require_text(first_answer(value), role) for role, value in texts_by_role.items()
        }
        rng = random.Random(content_id(sorted(values.items())))
        if "options" in row:
            names, texts = parse_options(row["options"])
            label, is_number = self.label_text(row["label"]), type(row["label"]) is int
            chosen = chosen_option(label, names, texts, self.first_number, is_number)
            if label in texts:  # the right option may be at the same place in every row
                rng.shuffle(texts)
            values |= option_values(chosen, texts)
            # every phrasing needs the text that the question is about
            if {"context", "question"} <= values.keys():
                values["question"] = f"{values['context']}\n\n{values['question']}"
        elif "label" in row:
            values |= self.label_values(self.label_word(row["label"]), rng)
        usable = [phrasing for phrasing in self.phrasings if phrasing[2] <= values.keys()]
        if not usable:
            raise BadRow("", f"no phrasing of the task uses only the columns for {', '.join(row)}")
        ask, answer, _ = rng.choice(usable)
        try:
            texts = [render(template, values).strip() for template in (ask, answer)]
        except TemplateFault as error:
            raise BadRow("", f"the phrasing cannot be rendered: {error}") from error
        request, reply = (require_text(text, "") for text in texts)
        return ParsedRow([{"role": "user", "content": request}], [reply])

    def label_values(self, label: str, rng: random.Random) -> dict[str, str]:
        """Return a label and, in drawn order, the options: this label and others of the set."""
        other_words = [word for word in self.label_words if word != label]
        options = [label, *rng.sample(other_words, min(len(other_words), MAX_OPTIONS - 1))]
        rng.shuffle(options)
        return option_values(label, options)


def option_values(label: str, options: list[str]) -> dict[str, str]:
    """Return the template variables of a label and its options: `options` in lines, `choices` in a sentence."""
    sentence = " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))
    return {
        "label": label,
        "options": "\n".join(f"- {word}" for word in options),
        "choices": sentence,
    }


def first_answer(value: Any) -> Any:
    """Return the first of several answers, also as SQuAD writes them; any other value unchanged."""
    value = value.get("text") if isinstance(value, dict) else value
    return value[0] if isinstance(value, list) and value else value


def read_task(name: str) -> dict[str, Any]:
    """Return a ready-made task, or one of the user's YAML file. Raise UserError for a missing or faulty one."""
    path = (
        FOLDER / f"{name}.yaml" if name in plugins.label_task_names() else plugins.user_path(name)
    )
    if not path.is_file():
        hint = suggest(name, plugins.label_task_names())
        raise UserError(f"task={name}: neither a ready-made task nor a YAML file.{hint}")
    return parse_task(read_template(path, "task"), str(path))


@cache
def parse_task(content: str, path: str) -> dict[str, Any]:
    """Return the task in a file's content; raise UserError if a key is missing, or a phrasing cannot be used."""
    try:
        task = parse_bounded(content, may_alias=False)
        columns = {str(role): str(names) for role, names in task["columns"].items()}
        labels = {str(key): str(word) for key, word in task.get("labels", {}).items()}
        needs = tuple(map(str, task.get("needs", columns)))
        pairs = phrasing_pairs(task)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        problem = " ".join(str(error).split())
        raise UserError(
            f"{path}: a task needs the keys columns, phrasings and answer ({problem})."
        ) from error
    for pair in pairs:
        with guard_template(f"{path}: a phrasing cannot be used", f"It is {pair[0]!r:.80}"):
            variables = read_variables(pair[0]) | read_variables(pair[1])
            for template in pair:
                # the template may use a key that these made-up values do not have
                with suppress(Refusal):
                    render(template, {variable: f"({variable})" for variable in variables})
        if unknown := min(variables - columns.keys() - LABEL_VARIABLES, default=None):
            raise UserError(
                f"{path}: a phrasing has the unknown variable {unknown!r}.{suggest(unknown, columns)}"
            )
    return {**task, "columns": columns, "labels": labels, "needs": needs}


def phrasing_pairs(task: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the templates of each phrasing: the request, and its answer."""
    pairs = [
        (p, task["answer"]) if isinstance(p, str) else (p["ask"], p["answer"])
        for p in task["phrasings"]
    ]
    if any(not isinstance(template, str) for pair in pairs for template in pair):
        raise TypeError("phrasings and answers must be text")
    return pairs


def parse_options(value: Any) -> tuple[list[str], list[str]]:
    """Return the names of options (letters if they have no names), and their texts. Options may be a list of texts,
    objects with a label and a text, an object with a list of each (ARC), or an object with a text for each name."""
    if isinstance(value, dict) and value and all(isinstance(item, str) for item in value.values()):
        value = {"label": [*value], "text": [*value.values()]}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {key: [item.get(key) for item in value] for key in ("label", "text")}
    names = value.get("label") if isinstance(value, dict) else None
    items = require_list(value.get("text") if isinstance(value, dict) else value, "options")
    texts = [require_text(item, "options") for item in items]
    marks = [OPTION_MARK.match(option) for option in texts]
    if [mark and mark[1] for mark in marks] == [*LETTERS[: len(texts)]]:
        texts = [option[mark.end() :] for option, mark in zip(texts, marks, strict=True) if mark]
    if names and len(names) != len(texts):
        raise BadRow("options", f"{len(names)} labels for {len(texts)} texts")
    return [str(name) for name in names or LETTERS[: len(texts)]], texts


def first_option_number(labels: Iterable[tuple[str, Any]]) -> int | None:
    """Return the number of the first option, 0 or 1, from rows of a label and its options; None if none reveals it."""
    numbers = set[int]()
    for label, options in labels:
        if label.isdecimal() and isinstance(options := parse_cell(options), list):
            numbers |= {0} if int(label) == 0 else {1} if int(label) == len(options) else set()
    return min(numbers, default=None)


def chosen_option(
    label: str, names: list[str], texts: list[str], first_number: int | None, is_number: bool
) -> str:
    """Return the text of the option that a label means: by name, text, letter or number (from `first_number`). What
    `is_number` in the file is a place first, even where it is also the text of an option."""
    name = label.strip()
    if name in names:
        return texts[names.index(name)]
    place = LETTERS.find(name.upper()) if len(name) == 1 else -1
    place = int(name) - (first_number or 0) if name.isdecimal() else place
    is_place = 0 <= place < len(texts)
    if name in texts and not (is_number and is_place and first_number is not None):
        return name
    if name.isdecimal() and first_number is None:
        raise BadRow("label", f"{name!r}: no row shows if the first option is 0 or 1")
    if not is_place:
        raise BadRow("label", f"{name!r:.40} is not one of the {len(texts)} options")
    return texts[place]
