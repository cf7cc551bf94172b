"""The base class of formats: a format parses the columns of a row into a prompt, its answers and their scores.

Weights of a row or a turn select the trained answers. Only 0 and 1 are accepted, as the loss is a plain mean."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from stages.config.blocks.data import Source
from stages.config.installation import read_beside
from stages.formats.columns import Path
from stages.formats.readers.row import LEAVE_OUT, BadRow, ChangesMeaning, Way
from stages.formats.transcripts import is_transcript, parse_open_transcript, without_end
from stages.formats.turns import (
    REASONING_KEYS,
    Turn,
    TurnReader,
    context_turns,
    is_content,
    is_parts,
    is_trained,
    messages,
    parse_notation,
    require_text,
    require_words,
    split_off_answer,
    split_system,
    with_reasoning,
    with_tools,
)
from stages.store.records import Message
from stages.store.text_units import count_shared_prefix, transcript

NAMES = read_beside(__file__)
# Roles that several formats have, each with the column names that are tried for it, in this order.
CONTEXT, TURNS, PROMPT, WEIGHT = (NAMES[part] for part in ("context", "turns", "prompt", "weight"))
COMPLETION: str = NAMES["completion"]
THOUGHT = {"reasoning": f"{' '.join(REASONING_KEYS)} {NAMES['thought']}"}
CUT = Way({"data.form.turns": "cut"}, "to end it at its last answer")
PREFILLED = "the prompt ends with an assistant turn. No setting moves it: leave it out, or write it at the beginning of each answer"
# values that turn reasoning on or off, and are not its text
SWITCHES = {"on", "off", "true", "false", "yes", "no"}
# roles of every format; apart from `model`, only `columns` gives them a column
STATED = {"licence": "", "origin": "", "group": "", "model": ""}


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
    transcript. `licence`, `origin` and `group`: as the row states them. `models`: the model that wrote each answer.
    `contradicts`: a rejected answer has the higher score."""

    messages: list[Message]
    answers: list[str]
    scores: list[float] | None = None
    graded: bool = False
    trained: list[bool] | None = None
    licence: str | None = None
    origin: str | None = None
    group: str | None = None
    continuations: list[list[Message]] | None = None
    contradicts: bool = False
    models: list[str | None] | None = None

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
    models = "generation_model"  # names of the column with the model that wrote an answer
    compares = False  # True if rows have several answers, and some are better
    learns_all = False  # True if `learn` needs all rows of a file
    weighted = False  # True if the turns in `messages` may have weights

    def __init__(self, source: Source):
        self.labels = {str(k).lower(): str(v) for k, v in source.labels.items()}
        # answers that are numbers stay as they are
        self.numbers = source.check in ("number", "math")
        self.dropped = {column for column, path in source.columns.items() if path is None}
        self.strip = source.reasoning == "strip"
        self.turns = TurnReader(self.strip, self.dropped, source.turns, self.labels)
        self.number_words = list[
            str
        ]()  # the answers of the first rows that are true, false or a number
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
        untrained = [f"{self.untrained:,} answers have weight 0 and are not trained on"]
        return untrained * bool(self.untrained) + self.turns.remarks()

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """Parse a row's values by role: all in `needs`, none empty. Raise BadRow if the row cannot be used."""

    def read_conversation(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the conversation in `messages`, or else the one that ends with the request in `prompt`."""
        if "messages" in row:
            turns = self.turns.read(row["messages"], "messages", self.weighted)
        elif "prompt" in row:
            prompt = only_text(row["prompt"], "prompt")
            dialogue = prompt if isinstance(prompt, list) else parse_open_transcript(prompt)
            if is_content(prompt):
                dialogue = None
            if dialogue is None:
                return self.with_context(row, [Turn("user", self.read_request(row, prompt))])
            turns = self.turns.read(dialogue, "prompt")
        else:
            raise BadRow("prompt", "the column is missing, or empty")
        if "input" in row:
            raise BadRow("input", "the prompt has several turns", LEAVE_OUT)
        return self.with_context(row, turns)

    def read_request(self, row: Mapping[str, Any], prompt: Any) -> str:
        """Return the request of a row, with its input below."""
        request = require_words(prompt, "prompt")
        if "input" not in row:
            return request
        return f"{request}\n\n{require_text(only_text(row['input'], 'input'), 'input')}"

    def with_context(self, row: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
        """Return the turns after the row's system message and history, with the row's tools in the system message."""
        before = context_turns(row)
        if "system" in row and turns[0].role == "system":
            if before[0].content != turns[0].content:
                raise BadRow("system", "differs from the first message", LEAVE_OUT)
            turns = turns[1:]
        turns = before + turns
        return with_tools(turns, row["tools"]) if "tools" in row else turns

    def read_prompt(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the row's conversation, which must end with a request."""
        return self.require_request(self.read_conversation(row))

    def require_request(self, turns: list[Turn]) -> list[Turn]:
        """Return a conversation in order; raise BadRow if it does not end with a request."""
        turns = self.turns.order(turns)
        if turns[-1].role == "assistant":
            raise BadRow("", PREFILLED)
        return turns

    def read_exchange(self, row: Mapping[str, Any]) -> list[Turn]:
        """Return the row's conversation with its answer, which is in `completion`, or the last turn of `messages`."""
        turns = self.read_conversation(row)
        if "completion" not in row or ("messages" in row and turns[-1].role == "assistant"):
            return self.turns.order(turns, ends_with_answer=True)
        prompt = self.require_request(turns)
        answer = self.read_answer(row["completion"], "completion", prompt, row.get("reasoning"))
        return [*prompt, Turn("assistant", answer)]

    def trained_row(self, row: Mapping[str, Any]) -> ParsedRow:
        """Return the row of a conversation and its answer, with the turns that its weights train."""
        turns = self.read_exchange(row)
        if "weight" in row and not is_trained(row["weight"], "weight"):
            turns = [turn._replace(trained=False) for turn in turns]
        parsed = conversation_row(turns)
        self.untrained += (parsed.trained or []).count(False)
        return parsed

    def read_whole(self, row: Mapping[str, Any], side: str) -> list[Turn]:
        """Return the turns of a role such as `chosen` that holds a conversation, or all turns after the prompt."""
        turns = self.turns.read(row[side], side)
        if turns[0].role == "assistant" and {"prompt", "messages"} & row.keys():
            return [*self.read_prompt(row), *turns]
        return self.with_context(row, turns)

    def read_continuation(
        self, row: Mapping[str, Any], side: str, prompt: list[Turn]
    ) -> list[Turn]:
        """Return the prompt with the answer in a role, or with its turns, which may repeat the prompt."""
        if not is_whole(row[side]):
            return [*prompt, Turn("assistant", self.read_answer(row[side], side, prompt))]
        turns = self.turns.read(row[side], side)
        return turns if turns[: len(prompt)] == prompt else [*prompt, *turns]

    def compared_row(
        self, conversations: Mapping[str, list[Turn]], scores: list[float]
    ) -> ParsedRow:
        """Return the row of two conversations, by the role that holds each. The messages that they share are the
        prompt, up to the last place where an assistant turn follows in both.
        Raise BadRow if they are equal or share no request, or if one is the beginning of the other."""
        ordered = {
            side: self.turns.order(turns, ends_with_answer=True)
            for side, turns in conversations.items()
        }
        for side, turns in ordered.items():
            if turns[-1].role != "assistant":
                ways = [CUT] if any(turn.role == "assistant" for turn in turns) else []
                raise BadRow(side, "does not end with an assistant turn", *ways)
        (other, first), (side, second) = ordered.items()
        place = count_shared_prefix(first, second)
        if first == second:
            raise BadRow(side, f"is the same as {other}")
        if place == min(len(first), len(second)):
            raise BadRow(
                side, f"goes on where {other} ends, or the reverse: no answer differs from another"
            )
        while place >= 0 and {first[place].role, second[place].role} != {"assistant"}:
            place -= 1
        if place < 0:
            requests = [split_system(turns)[1][:1] for turns in (first, second)]
            same_request = requests[0] == requests[1]
            difference = (
                "the system message differs" if same_request else "no user turn is the same"
            )
            raise BadRow(side, f"answers another prompt than {other}: {difference}")
        sides = [messages(first[place:]), messages(second[place:])]
        answers = [*map(transcript, sides)]
        return ParsedRow(messages(first[:place]), answers, scores, continuations=sides)

    def read_answer(self, value: Any, field: str, prompt: list[Turn], reasoning: Any = None) -> str:
        """Return the answer from a string, a turn, or a list of turns that may repeat the prompt."""
        value = only_text(value, field)
        if isinstance(value, (bool, int, float)):
            value = self.answer_word(value, field)
        if isinstance(value, (list, dict)) and not is_parts(value):
            turns = self.turns.read(value if isinstance(value, list) else [value], field)
            if turns[:-1] not in ([], prompt) or turns[-1].role != "assistant":
                whole = Way({"columns": {"messages": "COLUMN"}}, "to read it as the conversation")
                ways = [whole] if field == "completion" and turns[-1].role == "assistant" else []
                raise BadRow(field, "must be one assistant turn, alone or after the prompt", *ways)
            return turns[-1].content
        reasoning = only_text(reasoning, "reasoning")
        if reasoning is not None and str(reasoning).lower() in SWITCHES:
            reason = f"is {reasoning!r}, which is a switch and not a reasoning text"
            raise ChangesMeaning("reasoning", reason)
        answer = without_end(require_words(value, field))
        return with_reasoning(answer, reasoning, field, self.strip)

    def answer_word(self, value: Any, field: str) -> str:
        """Return the word from `labels` for an answer that is true, false or a number, or the number for a check.
        If rows have a label or a preference, `labels` has the words for it, and none for answers."""
        as_typed = str(value) if self.numbers and not isinstance(value, bool) else None
        has_labels = not self.roles.keys().isdisjoint(("label", "preference"))
        words = {} if has_labels else self.labels
        if (word := words.get(key := str(value).lower(), as_typed)) is None:
            texts = {word: word for word in sorted({key, *self.number_words})}
            ways = [] if has_labels else [Way({"labels": texts}, "with the text of each answer")]
            raise BadRow(field, f"must be text, is {type(value).__name__}", *ways)
        return word


def conversation_row(turns: list[Turn]) -> ParsedRow:
    """Return the row of a conversation, whose last turn is its answer if it is the assistant's."""
    prompt, answer = split_off_answer(turns)
    trained = [turn.trained for turn in turns if turn.role == "assistant"]
    answers = [] if answer is None else [answer]
    return ParsedRow(messages(prompt), answers, trained=None if all(trained) else trained)


def only_text(value: Any, field: str) -> Any:
    """Return the only text of a list; any other value unchanged. Raise BadRow for a list with several texts."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        return value
    if len(value) > 1:
        noun = "requests" if field == "prompt" else "texts" if field == "input" else "answers"
        first = Way({"columns": {field: "COLUMN.0"}}, "to read the first")
        raise BadRow(field, f"holds {len(value)} {noun}", first)
    return value[0]


def is_whole(value: Any) -> bool:
    """Return True if a value is a conversation of more than one turn."""
    return is_turns(value) and not (isinstance(value, list) and len(value) == 1)


def is_turns(value: Any) -> bool:
    """Return True for a list of objects, or a string that is a transcript or should be a list of turns."""
    if isinstance(value, str):
        is_broken_list = value.lstrip().startswith("[{") and parse_notation(value) is None
        return is_broken_list or is_transcript(value)
    are_objects = isinstance(value, list) and all(isinstance(turn, dict) for turn in value)
    return are_objects and bool(value) and not is_content(value)
