"""Labelled sets become instructions (FLAN, arXiv:2109.01652): a task is a YAML file of phrasings, and each row gets
one of them, drawn by its content.

`columns` names what a row holds, as roles do; `labels` are words for labels; a phrasing is what is asked, in Jinja,
and is answered by `answer` unless it says otherwise. It is drawn only for rows that have all it speaks of.
`options`, one of a label set's labels a line, and `choices`, the same in a sentence, come in an order drawn with it.
Where a row has options of its own, its label names one of them: by name, letter, number or text.
"""

import pathlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from textwrap import shorten
from typing import Any

from stages.config.blocks.data import Source
from stages.config.errors import UserError, nearest
from stages.formats.columns import Path
from stages.formats.format import Format, ParsedRow
from stages.formats.readers.row import BadRow
from stages.formats.turns import require_list, require_text
from stages.sandbox.jinja_process import Refusal, TemplateFault, Unbounded, facts_of, load_yaml, render
from stages.store import plugins
from stages.store.records import content_id
from stages.store.source_files import read_template

FOLDER = pathlib.Path(__file__).with_name("tasks")
MAX_SHOWN = 200  # characters of labels, in a remark
MAX_OPTIONS = 8  # options that a phrasing lists
LABEL_VARIABLES = {"label", "options", "choices"}
NO_LABEL = "-1"  # the label of rows that have none, as `datasets` has it
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPTION_MARK = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*")  # before an option: A)


class Phrased(Format):
    learns_all = True

    def __init__(self, source: Source):
        super().__init__(source)
        task = read_task(str(source.task))
        self.roles, self.needs = task["columns"], task["needs"]
        self.words = {key.lower(): word for key, word in task["labels"].items()} | self.labels
        pairs = phrasing_pairs(task)
        # The answer to an inverted phrasing is no label that a check could compare.
        usable_pairs = [pair for pair in pairs if not source.check or pair[1] == task["answer"]]
        self.phrasings = [(*pair, variables_of(*pair)) for pair in usable_pairs]
        self.label_words = list[str]()
        self.first_number: int | None = None  # the number of the first option, where labels are numbers

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:
        """Take in the labels of all rows, and say which begin with the same word."""
        distinct_words = dict[str, None]()
        if "options" in self.roles:
            self.first_number = first_option_number((str(row["label"]), row["options"]) for row in rows)
            return
        for row in rows if "label" in self.roles else ():
            if "label" in row and str(row["label"]) != NO_LABEL:
                try:
                    distinct_words[self.label_word(row["label"])] = None
                except BadRow as error:
                    problem = error.reason.replace("COLUMN", str(names["label"]))
                    raise UserError(
                        f"{names['label']}: {problem}. {labels}={{VALUE: WORD, …}} says what a label means."
                    ) from error
        self.label_words = sorted(distinct_words)

    def remarks(self) -> list[str]:
        """The labels, and those that begin with the same word: their first token does not tell them apart."""
        first_words = Counter(word.split()[0].lower() for word in self.label_words)
        alike = [word for word in self.label_words if first_words[word.split()[0].lower()] > 1]
        remarks = (
            [f"{len(self.label_words)} labels: {shorten(', '.join(self.label_words), MAX_SHOWN)}"]
            if self.label_words
            else []
        )
        return remarks + (
            [f"{len(alike)} labels share their first word: {shorten(', '.join(alike), MAX_SHOWN)}"] if alike else []
        )

    def label_text(self, label: Any) -> str:
        """A label as a set has it, or as `labels` calls it; of a list, its only one."""
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        if isinstance(label, list | dict):
            raise BadRow(
                "label", f"must be one label, is {label!r:.40}: `columns: {{label: COLUMN.0}}` takes the first"
            )
        name = str(label).strip()
        return self.words.get(name.lower(), name)

    def label_word(self, label: Any) -> str:
        """A label in words: banking's `card_arrival` is card arrival."""
        name = self.label_text(label)
        if name == NO_LABEL:
            raise BadRow("label", f"is {NO_LABEL}: nobody has labelled the row")
        word = name.replace("_", " ").strip()
        if not any(letter.isalpha() for letter in word):
            raise BadRow("label", f"{name!r} is no word")
        return word

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        values = {
            role: require_text(first_answer(value), role) for role, value in row.items() if role not in LABEL_VARIABLES
        }
        rng = random.Random(content_id(sorted(values.items())))
        if "options" in row:
            names, texts = parse_options(row["options"])
            label = self.label_text(row["label"])
            if label in texts:  # which may stand at the same place in every row
                rng.shuffle(texts)
            values |= option_values(chosen_option(label, names, texts, self.first_number), texts)
            if {"context", "question"} <= values.keys():  # which is about it, whatever the phrasing
                values["question"] = f"{values['context']}\n\n{values['question']}"
        elif "label" in row:
            values |= self.label_values(self.label_word(row["label"]), rng)
        usable = [phrasing for phrasing in self.phrasings if phrasing[2] <= values.keys()]
        if not usable:
            raise BadRow("", f"no phrasing speaks of {', '.join(row)} alone")
        ask, answer, _ = rng.choice(usable)
        try:
            request, reply = (
                require_text(render(template, [values])[0].text.strip(), "") for template in (ask, answer)
            )
        except TemplateFault as error:
            raise BadRow("", f"the phrasing cannot be rendered with it: {error}") from error
        return ParsedRow([{"role": "user", "content": request}], [reply])

    def label_values(self, label: str, rng: random.Random) -> dict[str, str]:
        """A label, and it among others of its set."""
        other_words = [word for word in self.label_words if word != label]
        options = [label, *rng.sample(other_words, min(len(other_words), MAX_OPTIONS - 1))]
        rng.shuffle(options)
        return option_values(label, options)


def option_values(label: str, options: list[str]) -> dict[str, str]:
    """A label, and the options that it is one of, a line each and in a sentence."""
    sentence = " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))
    return {"label": label, "options": "\n".join(f"- {word}" for word in options), "choices": sentence}


def first_answer(value: Any) -> Any:
    """The first of several answers, as SQuAD has them, too."""
    value = value.get("text") if isinstance(value, dict) else value
    return value[0] if isinstance(value, list) and value else value


def variables_of(ask: str, answer: str) -> set[str]:
    """Return the variables of a phrasing."""
    return facts_of(ask).names | facts_of(answer).names


def read_task(name: str) -> dict[str, Any]:
    """A task by its name, or in a YAML file of the user's.

    Raises:
        UserError: where there is none, or it lacks something.
    """
    path = FOLDER / f"{name}.yaml" if name in plugins.labelled() else plugins.user_path(name)
    if not path.is_file():
        raise UserError(f"task={name} is neither a file nor ready-made.{nearest(name, plugins.labelled())}")
    return parse_task(read_template(path, "task"), str(path))


@cache
def parse_task(content: str, path: str) -> dict[str, Any]:
    """The task that a file's content makes.

    Raises:
        UserError: where it lacks something, or a phrasing cannot be used.
    """
    try:
        task = load_yaml(content)
        columns = {str(role): str(names) for role, names in task["columns"].items()}
        labels = {str(key): str(word) for key, word in task.get("labels", {}).items()}
        needs = tuple(map(str, task.get("needs", columns)))
        pairs = phrasing_pairs(task)
    except (TemplateFault, Unbounded, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: columns, phrasings and answer make a task ({' '.join(str(error).split())})."
        ) from error
    for pair in pairs:
        try:
            variables = variables_of(*pair)
            for template in pair:
                with suppress(Refusal):  # a part of a column that the example does not have
                    render(template, [{variable: f"({variable})" for variable in variables}])
        except (TemplateFault, Unbounded) as error:
            raise UserError(f"{path}: a phrasing cannot be used: {error}: {pair[0]!r:.80}") from error
        if unknown := variables - columns.keys() - LABEL_VARIABLES:
            raise UserError(f"{path}: a phrasing speaks of {min(unknown)!r}.{nearest(min(unknown), columns)}")
    return {**task, "columns": columns, "labels": labels, "needs": needs}


def phrasing_pairs(task: dict[str, Any]) -> list[tuple[str, str]]:
    """What the phrasings of a task ask, and the answer to each."""
    pairs = [(p, task["answer"]) if isinstance(p, str) else (p["ask"], p["answer"]) for p in task["phrasings"]]
    if any(not isinstance(template, str) for pair in pairs for template in pair):
        raise TypeError("phrasings and answers are text")
    return pairs


def parse_options(value: Any) -> tuple[list[str], list[str]]:
    """The names of options (letters, where they have none) and their texts: of a list of texts, of objects with a
    label and a text each, of an object with a list of each (ARC), or with a text by each name."""
    if isinstance(value, dict) and value and all(isinstance(item, str) for item in value.values()):
        value = {"label": [*value], "text": [*value.values()]}
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {key: [item.get(key) for item in value] for key in ("label", "text")}
    names = value.get("label") if isinstance(value, dict) else None
    texts = [
        require_text(item, "options")
        for item in require_list(value.get("text") if isinstance(value, dict) else value, "options")
    ]
    marks = [OPTION_MARK.match(option) for option in texts]
    if [mark and mark[1] for mark in marks] == [*LETTERS[: len(texts)]]:
        texts = [option[mark.end() :] for option, mark in zip(texts, marks, strict=True) if mark]
    return [str(name) for name in names or LETTERS[: len(texts)]], texts


def first_option_number(labels: Iterable[tuple[str, Any]]) -> int | None:
    """What number the first option has, in rows of a label and options: 0 or 1. None where they do not tell."""
    numbers = set[int]()
    for label, options in labels:
        if label.isdecimal() and isinstance(options, list):
            numbers |= {0} if int(label) == 0 else {1} if int(label) == len(options) else set()
    return min(numbers, default=None)


def chosen_option(label: Any, names: list[str], texts: list[str], first_number: int | None) -> str:
    """The option that a label means: by its name, its letter, its number from `low`, or its text."""
    name = str(label).strip()
    if name in names:
        return texts[names.index(name)]
    if name in texts:
        return name
    if name.isdecimal() and first_number is None:
        raise BadRow("label", f"{name!r}: no row tells whether the first option is 0 or 1")
    place = (
        int(name) - (first_number or 0) if name.isdecimal() else LETTERS.find(name.upper()) if len(name) == 1 else -1
    )
    if not 0 <= place < len(texts):
        raise BadRow("label", f"{name!r:.40} names none of {len(texts)} options")
    return texts[place]
