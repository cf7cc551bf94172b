"""The protocol of formats: which columns say what was asked, what was answered, and which answers are learnt from.

Weights of a row or of its turns say the last. A turn is trained or it is not: the loss is a mean over tokens that all
count alike, so a weight between 0 and 1 is refused by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from stages.config.blocks.data import Source
from stages.formats.columns import WEIGHTS, ChangesMeaning, Path, unfolded
from stages.formats.content_parts import is_parts
from stages.formats.readers.row import BadRow
from stages.formats.transcripts import open_transcript, transcript
from stages.formats.turns import (
    REASONING,
    ROLES,
    WHO,
    call_text,
    earlier,
    empty,
    listed,
    message,
    reasoned,
    said,
    split_off_answer,
    spoken_turns,
    text,
    with_tools,
)
from stages.store.records import Message

# Roles of columns that several formats have, with the names that they go by, in order of preference.
BEFORE = {
    "system": "system system_prompt system_message systeminstruction system_instruction",
    "history": "history",
    "tools": "tools functions",
}
TURNS = {"messages": "messages conversations conversation dialogue dialog contents"}
ASKED = {
    "prompt": "instruction prompt question query request problem definition user_input user human input inputs",
    "input": "input inputs context passage",
}
THOUGHT = {"reasoning": f"{' '.join(REASONING)} complex_cot cot chain_of_thought"}
SWITCHES = {"on", "off", "true", "false", "yes", "no"}  # of reasoning, and no reasoning
STATED = {"licence": "", "origin": ""}  # of any row, where `columns` says in which column
WEIGHT = {"weight": "loss_weight sample_weight weight train"}
COMPLETION = "output completion response answer solution assistant generation generated_solution target targets "
COMPLETION += "ground_truth"
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def roles_of(*common: Mapping[str, str], **own: str) -> dict[str, str]:
    """Roles with their names. Those of the format's own take their columns first."""
    return own | {role: names for each in common for role, names in each.items() if role not in own}


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

    def rewritten(self, write: Callable[[str, str], str]) -> "ParsedRow":
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
    weighed: tuple[str, ...] = ()  # roles of whose answers a weight is read

    def __init__(self, source: Source):
        self.labels = {str(k).lower(): str(v) for k, v in source.labels.items()}
        self.strip = source.reasoning == "strip"
        self.dropped = {column for column, path in source.columns.items() if path is None}
        self.untrained = 0  # turns, of the rows so far

    def named(self, columns: Collection[str]) -> Mapping[str, str]:
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
    def said(self, row: Mapping[str, Any]) -> ParsedRow:
        """What a row says. Its keys are roles that say something, those needed among them.

        Raises:
            BadRow: where it cannot be used.
        """

    def turns(self, value: Any, field: str) -> list[Message]:
        """The turns in a list of them, in a transcript, or in texts that take turns."""
        if (found := transcript(value, plain=True)) is not None:
            return [{**turn, "content": text(turn["content"], field)} for turn in found]
        return [message(turn, field, self.strip) for turn in spoken_turns(listed(value, field))]

    def asked(self, row: Mapping[str, Any]) -> list[Message]:
        """The conversation in a row's `messages`, else up to the request in its `prompt`."""
        if "messages" in row:
            turns = after(row, self.turns(row["messages"], "messages"))
        elif "prompt" not in row:
            raise BadRow("prompt", "the column is missing, or empty")
        elif isinstance(prompt := only(row["prompt"], "prompt"), list | dict):
            turns = after(row, self.turns(prompt if isinstance(prompt, list) else [prompt], "prompt"))
        elif written := open_transcript(prompt):
            turns = after(row, written)
        else:
            request = text(prompt, "prompt")
            if "input" in row:
                request = f"{request}\n\n{text(only(row['input'], 'input'), 'input')}"
            return self.offered([*earlier(row), {"role": "user", "content": request}], row)
        if "input" in row:
            raise BadRow("input", "stands beside a prompt of several turns: `columns: {COLUMN: null}` leaves it out")
        return self.offered(turns, row)

    def offered(self, turns: list[Message], row: Mapping[str, Any]) -> list[Message]:
        """The turns, with the tools that the row offers."""
        return with_tools(turns, row["tools"]) if "tools" in row else turns

    def request(self, row: Mapping[str, Any]) -> list[Message]:
        """As `asked`; it must not end with an answer already."""
        messages, answer = split_off_answer(self.asked(row))
        if answer is not None:
            raise BadRow("", "the prompt ends with an assistant turn")
        return messages

    def learnt(self, row: Mapping[str, Any], messages: list[Message], answer: str | None) -> ParsedRow:
        """A conversation with the answer that ends it, and which of its assistant turns are trained."""
        trained = trained_by_weights(row, messages, self.dropped, answer is not None)
        if trained:
            self.untrained += trained.count(False)
        return ParsedRow(messages, [] if answer is None else [answer], trained=trained)

    def whole(self, row: Mapping[str, Any], side: str) -> tuple[list[Message], str]:
        """The prompt and the answer of a whole conversation, which stands in one of several columns."""
        turns = after(row, self.turns(row[side], side))
        prompt, answer = split_off_answer(self.offered(turns, row))
        if answer is None:
            raise BadRow(side, "does not end with an assistant turn")
        return prompt, answer

    def answer(self, value: Any, field: str, asked: list[Message], thought: Any = None) -> str:
        """The answer in a string, a turn, or a list of turns that may repeat what was asked."""
        value = only(value, field)
        if isinstance(value, (bool, int, float)):
            value = self.worded(value, field)
        if isinstance(value, (list, dict)) and not is_parts(value):
            turns = [message(turn, field, self.strip) for turn in (value if isinstance(value, list) else [value])]
            if turns[:-1] not in ([], asked) or turns[-1]["role"] != "assistant":
                raise BadRow(field, "must be one assistant turn, alone or after the prompt")
            return turns[-1]["content"]
        if thought is not None and str(thought := only(thought, "reasoning")).lower() in SWITCHES:
            raise ChangesMeaning("reasoning", f"is {thought!r}, which is no reasoning")
        return reasoned(text(value, field), thought, field, self.strip)

    def worded(self, value: Any, field: str) -> str:
        """An answer that is true, false or a number, in the word that `labels` has for it."""
        if (word := self.labels.get(str(value).lower())) is None:
            told = f"`labels: {{{str(value).lower()}: WORD, …}}` says it in words"
            raise BadRow(field, f"must be text, is {type(value).__name__}: {told}")
        return word


def after(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """The turns of a conversation after what its row says of before."""
    before = earlier(row)
    if [turn["role"] for turn in (*before[:1], *turns[:1])] != ["system", "system"]:
        return before + turns
    if before[0] != turns[0]:
        raise BadRow("system", "is not the one that the messages begin with: `columns: {COLUMN: null}` leaves it out")
    return before + turns[1:]


def only(value: Any, field: str) -> Any:
    """The one text of a list; another value as it is.

    Raises:
        BadRow: where there are several, of which any may be meant.
    """
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        return value
    if len(value) > 1:
        what = "requests" if field == "prompt" else "texts" if field == "input" else "answers"
        raise BadRow(field, f"holds {len(value)} {what}: `columns: {{{field}: COLUMN.0}}` takes the first")
    return value[0]


def calls(value: Any) -> str | None:
    """The calls of tools in a list of them, as text."""
    found = unfolded(value)
    if not isinstance(found, list) or not found or not all(isinstance(c, dict) and "arguments" in c for c in found):
        return None
    return "\n".join(call_text(call, "completion") for call in found)


def is_turns(value: Any) -> bool:
    """Whether a value looks like the turns of a conversation."""
    if isinstance(value, str):
        return transcript(value) is not None or value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) for turn in value)


def is_trained(value: Any, column: str) -> bool:
    """Whether a weight has its turn trained.

    Raises:
        ChangesMeaning: where it is neither 0 nor 1.
    """
    if (found := FLAGS.get(str(value).lower())) is None:
        raise ChangesMeaning(column, f"is {value!r:.40}, and of weights only 0 and 1 are read")
    return found


def trained_turns(given: Any, column: str, dropped: Collection[str] = ()) -> list[bool]:
    """Whether each assistant turn of a list is trained, by the weights that it has."""
    turns = spoken_turns(listed(given, column)) if isinstance(given, list) or str(given).lstrip()[:1] == "[" else []
    return [
        all(
            is_trained(value, f"{column}.{key}")
            for key, value in turn.items()
            if key in WEIGHTS and key not in dropped and not empty(value)
        )
        for turn in turns
        if isinstance(turn, dict) and ROLES.get(str(said(turn, WHO)).lower()) == "assistant"
    ]


def trained_by_weights(
    row: Mapping[str, Any], turns: list[Message], dropped: Collection[str], answered: bool
) -> list[bool] | None:
    """Whether each assistant turn of a conversation is trained, by its row's weight and those of its `messages`, which
    come last in it; None where all are. `answered`: another one comes after these turns."""
    if "messages" not in row and "weight" not in row:
        return None
    count = sum(turn["role"] == "assistant" for turn in turns) + answered
    own = trained_turns(row["messages"], "messages", dropped) if "messages" in row else []
    own += [True] * (answered and "completion" in row)  # beside messages that end with a request
    found = [True] * (count - len(own)) + own
    if "weight" in row and not is_trained(row["weight"], "weight"):
        found = [False] * count
    return None if all(found) else found
