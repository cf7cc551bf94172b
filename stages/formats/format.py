"""The base class of formats: a format parses the columns of a row into a prompt, its answers and their scores.

Weights of a row or a turn select the trained answers. Only 0 and 1 are accepted, as the loss is a plain mean."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from stages.config.blocks.data import Source
from stages.config.installation import read_beside
from stages.formats import turns as parsing
from stages.formats.columns import WEIGHTS, ChangesMeaning, Path
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import parse_open_transcript, parse_transcript, without_end
from stages.store.records import Message
from stages.store.text_units import count_shared_prefix, transcript

NAMES = read_beside(__file__)
# Roles that several formats have, each with the column names that are tried for it, in this order.
CONTEXT, TURNS, PROMPT, WEIGHT = (NAMES[part] for part in ("context", "turns", "prompt", "weight"))
COMPLETION: str = NAMES["completion"]
THOUGHT = {"reasoning": f"{' '.join(parsing.REASONING_KEYS)} {NAMES['thought']}"}
# values that turn reasoning on or off, and are not its text
SWITCHES = {"on", "off", "true", "false", "yes", "no"}
# roles of every format; only `columns` gives them a column
PROVENANCE = {"licence": "", "origin": ""}
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def roles_of(*common: Mapping[str, str], **format_roles: str) -> dict[str, str]:
    """Return roles with their column names; the format's roles come first, so that they take their columns first."""
    return format_roles | {
        role: names for each in common for role, names in each.items() if role not in format_roles
    }


class ParsedRow(NamedTuple):
    """The content of a row: `messages` up to the last request (empty for running text), and the answers to it.
    `scores`: one for each answer, higher is better. `graded` scores can be compared between rows; other scores only
    order the answers of one row. `trained`: a flag for each assistant turn, with the answer last; None if all are
    trained. `continuations`: the messages of each compared answer, which may be several turns; the answer is their
    transcript. `licence` and `origin`: as the row states them."""

    messages: list[Message]
    answers: list[str]
    scores: list[float] | None = None
    graded: bool = False
    trained: list[bool] | None = None
    licence: str | None = None
    origin: str | None = None
    continuations: list[list[Message]] | None = None

    def rewrite_texts(self, write: Callable[[str, str], str]) -> "ParsedRow":
        """Return the row with each text replaced by `write(text, role)`; the role of an answer is `answer`."""
        messages = [
            {**turn, "content": write(turn["content"], turn["role"])} for turn in self.messages
        ]
        return self._replace(
            messages=messages, answers=[write(answer, "answer") for answer in self.answers]
        )


class Format(ABC):
    """The base class of formats. A format is a file in this folder with one subclass; the setting `format` names it.
    A format reads rows by role. The setting `columns` gives the column of a role; otherwise the first of the role's
    names in `roles` that the file has is its column."""

    roles: Mapping[str, str]
    needs: tuple[str, ...] = ()
    compares = False  # True if rows have several answers, and some are better
    learns_all = False  # True if `learn` needs all rows of a file
    weighted_roles: tuple[str, ...] = ()  # roles whose turns may have weights

    def __init__(self, source: Source):
        self.labels = {str(k).lower(): str(v) for k, v in source.labels.items()}
        self.strip = source.reasoning == "strip"
        self.numbers = source.check == "number"  # answers that are numbers stay as they are
        self.dropped = {column for column, path in source.columns.items() if path is None}
        self.untrained = 0  # turns, of the rows so far

    def role_names(self, columns: Collection[str]) -> Mapping[str, str]:
        """Return the column names that are tried for each role in a file with these columns."""
        return self.roles

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Return True if the values of a row, by role, have the types that this format parses."""
        return True

    def learn(  # noqa: B027
        self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str
    ) -> None:
        """Learn from the first rows of a file, such as the set of labels. `names` are the columns by role.
        Raise UserError if the values are ambiguous; `labels` is the key of the setting that explains them."""

    def remarks(self) -> list[str]:
        """Return notes for the user on how the file was read."""
        return (
            [f"{self.untrained:,} answers have weight 0 and are not trained on"]
            if self.untrained
            else []
        )

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """Parse a row's values by role: all in `needs`, none empty. Raise BadRow if the row cannot be used."""

    def parse_turns(self, value: Any, field: str) -> list[Message]:
        """Parse turns from a list of objects, a list of alternating texts, or a transcript in one string."""
        if (messages := parse_transcript(value, plain=True)) is not None:
            return with_texts(messages, field, self.strip)
        turns = parsing.turn_objects(parsing.require_list(value, field))
        return [parsing.parse_turn(turn, field, self.strip) for turn in turns]

    def read_conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """Return the conversation in `messages`, or else the one that ends with the request in `prompt`."""
        if "messages" in row:
            turns = with_context(row, self.parse_turns(row["messages"], "messages"))
        elif "prompt" not in row:
            raise BadRow("prompt", "the column is missing, or empty")
        elif isinstance(prompt := only_text(row["prompt"], "prompt"), list | dict):
            turns = with_context(
                row, self.parse_turns(prompt if isinstance(prompt, list) else [prompt], "prompt")
            )
        elif (dialogue := parse_open_transcript(prompt)) and any(
            turn["role"] == "user" for turn in dialogue
        ):
            turns = with_context(row, with_texts(dialogue, "prompt", self.strip))
        else:
            request = parsing.require_text(prompt, "prompt")
            if "input" in row:
                request = f"{request}\n\n{parsing.require_text(only_text(row['input'], 'input'), 'input')}"
            return self.add_tools(
                [*parsing.context_turns(row), {"role": "user", "content": request}], row
            )
        if "input" in row:
            way = "type `columns: {COLUMN: null}` to leave the input out"
            raise BadRow("input", f"the prompt has several turns: {way}")
        return self.add_tools(turns, row)

    def add_tools(self, turns: list[Message], row: Mapping[str, Any]) -> list[Message]:
        """Return the turns, with the row's tools in the system message."""
        return parsing.with_tools(turns, row["tools"]) if "tools" in row else turns

    def read_prompt(self, row: Mapping[str, Any]) -> list[Message]:
        """Return the row's conversation, which must end with a request."""
        messages, answer = parsing.split_off_answer(self.read_conversation(row))
        if answer is not None:
            raise BadRow("", "the prompt ends with an assistant turn")
        return messages

    def weighted_row(
        self, row: Mapping[str, Any], messages: list[Message], answer: str | None
    ) -> ParsedRow:
        """Return the parsed row of a conversation and its last answer, with the turns that its weights train."""
        trained = trained_by_weights(row, messages, self.dropped, answer is not None)
        if trained:
            self.untrained += trained.count(False)
        return ParsedRow(messages, [] if answer is None else [answer], trained=trained)

    def read_whole(self, row: Mapping[str, Any], side: str) -> list[Message]:
        """Return the turns of a role such as `chosen` that holds a conversation, or all turns after the prompt."""
        turns = self.parse_turns(row[side], side)
        if turns[0]["role"] == "assistant" and {"prompt", "messages"} & row.keys():
            return [*self.read_prompt(row), *turns]
        return self.add_tools(with_context(row, turns), row)

    def read_continuation(
        self, row: Mapping[str, Any], side: str, prompt: list[Message]
    ) -> list[Message]:
        """Return the prompt with the answer in a role, or with its turns, which may repeat the prompt."""
        if not is_whole(row[side]):
            return [
                *prompt,
                {"role": "assistant", "content": self.read_answer(row[side], side, prompt)},
            ]
        turns = self.parse_turns(row[side], side)
        return turns if turns[: len(prompt)] == prompt else [*prompt, *turns]

    @staticmethod
    def compared_row(conversations: Mapping[str, list[Message]], scores: list[float]) -> ParsedRow:
        """Return the row of two conversations, by the role that holds each. The messages that they share are the
        prompt, up to the last place where an assistant turn follows in both.
        Raise BadRow if they are equal or share no request, or if one is the beginning of the other."""
        for side, turns in conversations.items():
            if parsing.split_off_answer(turns)[1] is None:
                raise BadRow(side, "does not end with an assistant turn")
        (other, first), (side, second) = conversations.items()
        place = count_shared_prefix(first, second)
        if first == second:
            raise BadRow(side, f"is the same as {other}")
        if place == min(len(first), len(second)):
            raise BadRow(
                side, f"goes on where {other} ends, or the reverse: no answer differs from another"
            )
        while place >= 0 and (first[place]["role"], second[place]["role"]) != (
            "assistant",
            "assistant",
        ):
            place -= 1
        if place < 0:
            raise BadRow(
                side, f"answers another prompt than {other}: no user turn is the same in both"
            )
        sides = [first[place:], second[place:]]
        return ParsedRow(first[:place], [*map(transcript, sides)], scores, continuations=sides)

    def read_answer(
        self, value: Any, field: str, prompt: list[Message], reasoning: Any = None
    ) -> str:
        """Return the answer from a string, a turn, or a list of turns that may repeat the prompt."""
        value = only_text(value, field)
        if isinstance(value, (bool, int, float)):
            value = self.answer_word(value, field)
        if isinstance(value, (list, dict)) and not parsing.is_parts(value):
            objects = value if isinstance(value, list) else [value]
            turns = [parsing.parse_turn(turn, field, self.strip) for turn in objects]
            if turns[:-1] not in ([], prompt) or turns[-1]["role"] != "assistant":
                raise BadRow(field, "must be one assistant turn, alone or after the prompt")
            return turns[-1]["content"]
        if (
            reasoning is not None
            and str(reasoning := only_text(reasoning, "reasoning")).lower() in SWITCHES
        ):
            raise ChangesMeaning(
                "reasoning", f"is {reasoning!r}, which is a switch and not a reasoning text"
            )
        answer = without_end(parsing.require_text(value, field))
        return parsing.with_reasoning(answer, reasoning, field, self.strip)

    def answer_word(self, value: Any, field: str) -> str:
        """Return the word from `labels` for an answer that is true, false or a number, or the number for a check."""
        as_typed = str(value) if self.numbers and not isinstance(value, bool) else None
        if (word := self.labels.get(key := str(value).lower(), as_typed)) is None:
            hint = f"type `labels: {{{key}: WORD, …}}` with the text of each answer"
            raise BadRow(field, f"must be text, is {type(value).__name__}: {hint}")
        return word


def with_texts(turns: list[Message], field: str, strip: bool) -> list[Message]:
    """Return a transcript's turns; with `strip`, without reasoning. Raise BadRow if a turn has no text in Unicode."""
    texts = [parsing.require_text(turn["content"], field) for turn in turns]
    return [
        {
            **turn,
            "content": parsing.with_reasoning(
                text, None, field, strip and turn["role"] == "assistant"
            ),
        }
        for turn, text in zip(turns, texts, strict=True)
    ]


def with_context(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """Return the turns after the row's system message and history."""
    before = parsing.context_turns(row)
    if [turn["role"] for turn in (*before[:1], *turns[:1])] != ["system", "system"]:
        return before + turns
    if before[0] != turns[0]:
        raise BadRow(
            "system",
            "differs from the first message: type `columns: {COLUMN: null}` to leave it out",
        )
    return before + turns[1:]


def only_text(value: Any, field: str) -> Any:
    """Return the only text of a list; any other value unchanged. Raise BadRow for a list with several texts."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return value
    if len(value) > 1:
        noun = "requests" if field == "prompt" else "texts" if field == "input" else "answers"
        raise BadRow(
            field,
            f"holds {len(value)} {noun}: type `columns: {{{field}: COLUMN.0}}` to read the first",
        )
    return value[0]


def is_whole(value: Any) -> bool:
    """Return True if a value is a conversation of more than one turn."""
    return is_turns(value) and not (isinstance(value, list) and len(value) == 1)


def is_turns(value: Any) -> bool:
    """Return True for a list of objects, or a string that is a transcript or a list of turns."""
    if isinstance(value, str):
        return parse_transcript(value) is not None or parsing.is_written_list(value)
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def is_trained(value: Any, column: str) -> bool:
    """Return True for weight 1 and False for weight 0; raise ChangesMeaning for any other."""
    if (flag := FLAGS.get(str(value).lower())) is None:
        raise ChangesMeaning(column, f"is {value!r:.40}, but a weight must be 0 or 1")
    return flag


def trained_turns(messages: Any, column: str, dropped: Collection[str] = ()) -> list[bool]:
    """Return a flag for each assistant turn of a list: False if one of its weights is 0. A transcript has no flags."""
    # Llama 2's begins with "[INST]"
    is_transcript = parse_transcript(messages, plain=True) is not None
    is_list = not is_transcript and str(messages).lstrip()[:1] == "["
    turns = parsing.turn_objects(parsing.require_list(messages, column)) if is_list else []
    answers = [turn for turn in turns if parsing.role_of(turn) == "assistant"]
    keys = WEIGHTS - {*dropped}
    weights = [
        {k: v for k, v in turn.items() if k in keys and not parsing.is_empty(v)} for turn in answers
    ]
    return [
        all(is_trained(value, f"{column}.{key}") for key, value in each.items()) for each in weights
    ]


def trained_by_weights(
    row: Mapping[str, Any], turns: list[Message], dropped: Collection[str], answered: bool
) -> list[bool] | None:
    """Return a flag for each assistant turn, by the weights of the row and of its messages; None if all are trained.
    `turns` end with the messages; a history before them is trained. `answered`: one more answer follows the turns."""
    if "messages" not in row and "weight" not in row:
        return None
    count = sum(turn["role"] == "assistant" for turn in turns) + answered
    message_flags = trained_turns(row["messages"], "messages", dropped) if "messages" in row else []
    # the messages end with a request then
    message_flags += [True] * (answered and "completion" in row)
    flags = [True] * (count - len(message_flags)) + message_flags
    if "weight" in row and not is_trained(row["weight"], "weight"):
        flags = [False] * count
    return None if all(flags) else flags
