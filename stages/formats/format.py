"""The protocol of formats: which columns say what was asked, what was answered, and which answers are learnt from.

Weights of a row or of its turns say the last. A turn is trained or it is not: the loss is a mean over tokens that all
count alike, so a weight between 0 and 1 is refused by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from stages.config.blocks.data import Source
from stages.formats.columns import WEIGHTS, ChangesMeaning, Path, parse_cell
from stages.formats.content_parts import is_parts
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import parse_open_transcript, parse_transcript
from stages.formats.turns import (
    REASONING_KEYS,
    ROLE_KEYS,
    ROLES,
    call_text,
    context_turns,
    first_value,
    is_empty,
    parse_turn,
    require_list,
    require_text,
    split_off_answer,
    turn_objects,
    with_reasoning,
    with_tools,
)
from stages.store.records import Message

# Roles of columns that several formats have, with the names that they go by, in order of preference.
CONTEXT = {
    "system": "system system_prompt system_message systeminstruction system_instruction",
    "history": "history",
    "tools": "tools functions",
}
TURNS = {"messages": "messages conversations conversation dialogue dialog contents"}
PROMPT = {
    "prompt": "instruction prompt question query request problem definition user_input user human input inputs",
    "input": "input inputs context passage",
}
THOUGHT = {"reasoning": f"{' '.join(REASONING_KEYS)} complex_cot cot chain_of_thought"}
SWITCHES = {"on", "off", "true", "false", "yes", "no"}  # of reasoning, and no reasoning
PROVENANCE = {"licence": "", "origin": ""}  # of any row, where `columns` says in which column
WEIGHT = {"weight": "loss_weight sample_weight weight train"}
COMPLETION = "output completion response answer solution assistant generation generated_solution target targets "
COMPLETION += "ground_truth"
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def roles_of(*common: Mapping[str, str], **format_roles: str) -> dict[str, str]:
    """Roles with their names. Those of the format's own take their columns first."""
    return format_roles | {
        role: names for roles in common for role, names in roles.items() if role not in format_roles
    }


class ParsedRow(NamedTuple):
    """What a row says: the messages up to the last request (none of running text), and the answers to it. `scores` of
    answers that somebody judged: higher is better. Those that are `graded` mean something from row to row; others tell
    the answers of one row apart. `trained`: whether each assistant turn is, the one answer last; None: all are.
    `licence` and `origin`: what the row states of itself."""

    messages: list[Message]
    answers: list[str]
    scores: list[float] | None = None
    graded: bool = False
    trained: list[bool] | None = None
    licence: str | None = None
    origin: str | None = None

    def rewrite_texts(self, write: Callable[[str, str], str]) -> "ParsedRow":
        """The row with every text of it written anew, by the text and where it stands: a role, or `answer`."""
        messages = [{**turn, "content": write(turn["content"], turn["role"])} for turn in self.messages]
        return self._replace(messages=messages, answers=[write(answer, "answer") for answer in self.answers])


class Format(ABC):
    """A format is a file in this folder with one such class; `format` of a source names the file. What it reads are
    *roles*: `columns` of a source says which column has which, else the first of their names that a file has."""

    roles: Mapping[str, str]
    needs: tuple[str, ...] = ()
    compares = False  # whether a row has several answers, of which some are better
    learns_all = False  # whether `learn` needs all rows of a file
    weighted_roles: tuple[str, ...] = ()  # roles of whose answers a weight is read

    def __init__(self, source: Source):
        self.labels = {str(k).lower(): str(v) for k, v in source.labels.items()}
        self.strip = source.reasoning == "strip"
        self.dropped = {column for column, path in source.columns.items() if path is None}
        self.untrained = 0  # turns, of the rows so far

    def role_names(self, columns: Collection[str]) -> Mapping[str, str]:
        """The names of every role, among these columns of a file."""
        return self.roles

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has what is needed in the shape that it must have. Its keys are roles."""
        return True

    def learn(self, rows: Iterable[Mapping[str, Any]], names: Mapping[str, Path], labels: str) -> None:  # noqa: B027
        """Look at a file's first rows, for what one alone does not tell. `names` are the columns by role.

        Raises:
            UserError: where they cannot be understood; `labels` is the setting that would say what they mean.
        """

    def remarks(self) -> list[str]:
        """What a user should know of a file beside what was read as what."""
        return [f"{self.untrained:,} answers have weight 0: they are read, and not trained"] if self.untrained else []

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """What a row says. Its keys are roles that say something, those needed among them.

        Raises:
            BadRow: where it cannot be used.
        """

    def parse_turns(self, value: Any, field: str) -> list[Message]:
        """The turns in a list of them, in a transcript, or in texts that take turns."""
        if (messages := parse_transcript(value, plain=True)) is not None:
            return [{**turn, "content": require_text(turn["content"], field)} for turn in messages]
        return [parse_turn(turn, field, self.strip) for turn in turn_objects(require_list(value, field))]

    def read_conversation(self, row: Mapping[str, Any]) -> list[Message]:
        """The conversation in a row's `messages`, else up to the request in its `prompt`."""
        if "messages" in row:
            turns = with_context(row, self.parse_turns(row["messages"], "messages"))
        elif "prompt" not in row:
            raise BadRow("prompt", "the column is missing, or empty")
        elif isinstance(prompt := only_text(row["prompt"], "prompt"), list | dict):
            turns = with_context(row, self.parse_turns(prompt if isinstance(prompt, list) else [prompt], "prompt"))
        elif dialogue := parse_open_transcript(prompt):
            turns = with_context(row, dialogue)
        else:
            request = require_text(prompt, "prompt")
            if "input" in row:
                request = f"{request}\n\n{require_text(only_text(row['input'], 'input'), 'input')}"
            return self.add_tools([*context_turns(row), {"role": "user", "content": request}], row)
        if "input" in row:
            raise BadRow("input", "stands beside a prompt of several turns: `columns: {COLUMN: null}` leaves it out")
        return self.add_tools(turns, row)

    def add_tools(self, turns: list[Message], row: Mapping[str, Any]) -> list[Message]:
        """The turns, with the tools that the row offers."""
        return with_tools(turns, row["tools"]) if "tools" in row else turns

    def read_prompt(self, row: Mapping[str, Any]) -> list[Message]:
        """As `asked`; it must not end with an answer already."""
        messages, answer = split_off_answer(self.read_conversation(row))
        if answer is not None:
            raise BadRow("", "the prompt ends with an assistant turn")
        return messages

    def weighted_row(self, row: Mapping[str, Any], messages: list[Message], answer: str | None) -> ParsedRow:
        """A conversation with the answer that ends it, and which of its assistant turns are trained."""
        trained = trained_by_weights(row, messages, self.dropped, answer is not None)
        if trained:
            self.untrained += trained.count(False)
        return ParsedRow(messages, [] if answer is None else [answer], trained=trained)

    def read_whole(self, row: Mapping[str, Any], side: str) -> tuple[list[Message], str]:
        """The prompt and the answer of a whole conversation, which stands in one of several columns."""
        turns = with_context(row, self.parse_turns(row[side], side))
        prompt, answer = split_off_answer(self.add_tools(turns, row))
        if answer is None:
            raise BadRow(side, "does not end with an assistant turn")
        return prompt, answer

    def read_answer(self, value: Any, field: str, prompt: list[Message], reasoning: Any = None) -> str:
        """The answer in a string, a turn, or a list of turns that may repeat what was asked."""
        value = only_text(value, field)
        if isinstance(value, (bool, int, float)):
            value = self.answer_word(value, field)
        if isinstance(value, (list, dict)) and not is_parts(value):
            turns = [parse_turn(turn, field, self.strip) for turn in (value if isinstance(value, list) else [value])]
            if turns[:-1] not in ([], prompt) or turns[-1]["role"] != "assistant":
                raise BadRow(field, "must be one assistant turn, alone or after the prompt")
            return turns[-1]["content"]
        if reasoning is not None and str(reasoning := only_text(reasoning, "reasoning")).lower() in SWITCHES:
            raise ChangesMeaning("reasoning", f"is {reasoning!r}, which is no reasoning")
        return with_reasoning(require_text(value, field), reasoning, field, self.strip)

    def answer_word(self, value: Any, field: str) -> str:
        """An answer that is true, false or a number, in the word that `labels` has for it."""
        if (word := self.labels.get(str(value).lower())) is None:
            hint = f"`labels: {{{str(value).lower()}: WORD, …}}` says it in words"
            raise BadRow(field, f"must be text, is {type(value).__name__}: {hint}")
        return word


def with_context(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """The turns of a conversation after what its row says of before."""
    before = context_turns(row)
    if [turn["role"] for turn in (*before[:1], *turns[:1])] != ["system", "system"]:
        return before + turns
    if before[0] != turns[0]:
        raise BadRow("system", "is not the one that the messages begin with: `columns: {COLUMN: null}` leaves it out")
    return before + turns[1:]


def only_text(value: Any, field: str) -> Any:
    """The one text of a list; another value as it is.

    Raises:
        BadRow: where there are several, of which any may be meant.
    """
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        return value
    if len(value) > 1:
        noun = "requests" if field == "prompt" else "texts" if field == "input" else "answers"
        raise BadRow(field, f"holds {len(value)} {noun}: `columns: {{{field}: COLUMN.0}}` takes the first")
    return value[0]


def calls_text(value: Any) -> str | None:
    """The calls of tools in a list of them, as text."""
    parsed = parse_cell(value)
    if not isinstance(parsed, list) or not parsed or not all(isinstance(c, dict) and "arguments" in c for c in parsed):
        return None
    return "\n".join(call_text(call, "completion") for call in parsed)


def is_turns(value: Any) -> bool:
    """Whether a value looks like the turns of a conversation."""
    if isinstance(value, str):
        return parse_transcript(value) is not None or value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def is_trained(value: Any, column: str) -> bool:
    """Whether a weight has its turn trained.

    Raises:
        ChangesMeaning: where it is neither 0 nor 1.
    """
    if (flag := FLAGS.get(str(value).lower())) is None:
        raise ChangesMeaning(column, f"is {value!r:.40}, and of weights only 0 and 1 are read")
    return flag


def trained_turns(messages: Any, column: str, dropped: Collection[str] = ()) -> list[bool]:
    """Whether each assistant turn of a list is trained, by the weights that it has."""
    turns = (
        turn_objects(require_list(messages, column))
        if isinstance(messages, list) or str(messages).lstrip()[:1] == "["
        else []
    )
    return [
        all(
            is_trained(value, f"{column}.{key}")
            for key, value in turn.items()
            if key in WEIGHTS and key not in dropped and not is_empty(value)
        )
        for turn in turns
        if isinstance(turn, dict) and ROLES.get(str(first_value(turn, ROLE_KEYS)).lower()) == "assistant"
    ]


def trained_by_weights(
    row: Mapping[str, Any], turns: list[Message], dropped: Collection[str], answered: bool
) -> list[bool] | None:
    """Whether each assistant turn of a conversation is trained, by its row's weight and those of its `messages`, which
    come last in it; None where all are. `answered`: another one comes after these turns."""
    if "messages" not in row and "weight" not in row:
        return None
    count = sum(turn["role"] == "assistant" for turn in turns) + answered
    message_flags = trained_turns(row["messages"], "messages", dropped) if "messages" in row else []
    message_flags += [True] * (answered and "completion" in row)  # beside messages that end with a request
    flags = [True] * (count - len(message_flags)) + message_flags
    if "weight" in row and not is_trained(row["weight"], "weight"):
        flags = [False] * count
    return None if all(flags) else flags
