"""Read the turns of a conversation, however they are written, and put them into an order that chat templates render.

Tools, their calls and reasoning become text, in the form that Hermes and Qwen models were trained on:
https://github.com/NousResearch/Hermes-Function-Calling."""

import ast
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from stages.config.installation import read_beside
from stages.formats.readers.row import LEAVE_OUT, BadRow, ChangesMeaning, Way
from stages.formats.tool_partners import (
    NAME_KEYS,
    RESULT_ID_KEYS,
    Link,
    find_partners,
    first_text,
    link_of_call,
    link_of_result,
    partner_error,
)
from stages.formats.transcripts import ROLES, parse_transcript
from stages.formats.turn_tags import unread_tag
from stages.store.records import Message
from stages.store.thoughts import MARKS, answer_behind
from stages.store.tool_calls import BEGIN, END, TOOLS

TEXTS = read_beside(__file__)
# Roles by the key of an object with one text for each role: {"question": …, "answer": …}
SPEAKERS = ROLES | {
    name: role for role, names in TEXTS["speakers"].items() for name in names.split()
}
WRITTEN_LIST = re.compile(r"\s*\[\s*[\"']?\s*\{")  # of objects, or of objects as texts
SPEAKER_LINE = re.compile(r"\s*(\w+)\s*:\s*(.*)", re.DOTALL)
TURN_ORDER = ("system", "user", "assistant", "tool")  # of the texts in one object
ROLE_KEYS = ("role", "from", "author", "speaker", "sender")
CONTENT_KEYS = ("content", "value", "parts", "text", "message", "utterance", "refusal")
CALL_ROLES = ("function_call", "tool_call")  # roles of turns that are tool calls and nothing else
REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
CALL_KEYS = ("tool_calls", "function_call")
# The roles that may follow each role; None is the beginning, after a system message if there is one.
NEXT_ROLES = {
    None: {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
# The kind of a part, by its `type`, or by its key if it has no type.
MEDIA_OF_PARTS = {name: kind for kind, names in TEXTS["media"].items() for name in names.split()}
KINDS = {name: kind for kind, names in TEXTS["parts"].items() for name in names.split()}
READ_PARTS = ("text", "thought", "call", "result")
VALUE_KEYS = ("text", "value", "thinking", "reasoning", "refusal")
ARGUMENT_KEYS = ("arguments", "input", "args")
RESULT_KEYS = ("content", "response", "result", "output")
TYPED_ROLES = {*TEXTS["typed"].split()}
EMPTY_JSON = ("", "[]", "{}")  # a tuple, since a set would hash the whole text
# Columns, and keys of turns, with a weight in the loss, and those that change what a row or a turn means.
WEIGHTS, CHANGING = ({*" ".join(TEXTS[part].values()).split()} for part in ("weights", "changing"))
TURN_WEIGHTS = WEIGHTS | {"loss"}  # a column of this name may be a measured loss
FLAGS_OF_TURNS = {*TEXTS["flags"].split()}
READ_KEYS = {*CALL_KEYS, *REASONING_KEYS, *RESULT_ID_KEYS, "channel"} - {"id"}
QUOTES = ("[", "{", '"', "'")  # of a value in JSON or in Python's notation
# The ways out for a text that is no conversation, or whose marks are part of it
AS_TEXT = Way({"format": "texts"}, "to train every row as it is written")
COLUMN_AS_TEXT = Way({"columns": {"text": "COLUMN"}, "format": "texts"}, AS_TEXT.purpose)
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


class Turn(NamedTuple):
    """A turn with one of the roles system, user, assistant and tool. `trained`: False if its weight is 0. `links`: while
    turns are read, what the file says of the assistant's calls, or of the call that the tool's result belongs to.
    `partner_error`: the error that a call of this turn has no result, or that a result behind it has no call."""

    role: str
    content: str
    trained: bool = True
    links: tuple[Link, ...] = ()
    partner_error: str = ""

    def join(self, other: "Turn", mark: str) -> "Turn":
        """Return one turn with both contents; it is trained if both are."""
        return Turn(
            self.role,
            self.content + mark + other.content,
            self.trained and other.trained,
            self.links + other.links,
            self.partner_error or other.partner_error,
        )


def messages(turns: Iterable[Turn]) -> list[Message]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


class TurnReader:
    """Reads the turns of a source's rows. `strip`: without reasoning. `dropped`: keys that the user leaves out.
    `shape`: the value of `data.form.turns`, for conversations whose turns do not alternate. `labels`: roles by the names
    that the file has for them. It counts the conversations
    that are reshaped, and collects the keys of turns that nothing reads as `field.key`."""

    def __init__(
        self,
        strip: bool = False,
        dropped: Collection[str] = (),
        shape: str | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
    ):
        self.strip, self.shape = strip, shape or "strict"
        named = {str(name).lower(): role for name, role in labels.items() if role in TURN_ORDER}
        self.roles = ROLES | named
        self.refusals = 0
        self.read_keys = {*READ_KEYS, *dropped}
        self.answered = True  # conversations should end with an answer
        self.reshaped = 0
        self.unread_keys = dict[str, None]()

    def read(self, value: Any, field: str, weighted: bool = False) -> list[Turn]:
        """Return the turns of a list of objects, a list of texts, or a transcript in one string. `weighted`: weights of
        the turns say which of them are trained. A turn that is a call joins the turn of the assistant before it."""
        turns, thought = list[Turn](), None
        for item in turn_objects(value, field):
            if not isinstance(item, dict):
                raise BadRow(field, "a turn must be an object with role and content")
            role_before = turns[-1].role if turns else None
            new_turns = self.read_turn(item, field, weighted, thought, role_before)
            # the thought before an answer may be a turn of its own
            is_thought = (
                item.get("channel") == "analysis" and role_of(item, self.roles) == "assistant"
            )
            thought = new_turns[0] if is_thought else None
            if is_thought:
                continue
            is_call = first_value(item, ROLE_KEYS) in CALL_ROLES
            if is_call and turns and turns[-1].role == "assistant":
                new_turns = [turns.pop().join(new_turns[0], "\n")]
            turns += new_turns
        if not turns:
            raise BadRow(field, "has no turn with text")
        return order_results(turns)

    def read_turn(
        self,
        turn: dict[str, Any],
        field: str,
        weighted: bool,
        thought: Turn | None,
        role_before: str | None = None,
    ) -> list[Turn]:
        """Return a turn as OpenAI, ShareGPT, LLaMA-Factory, Anthropic or Gemini writes it. Tool results inside a user's
        turn become turns of the tool, and a system message without text becomes none. `thought`: of an answer."""
        role_key, content_key = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
        self.refusals += content_key == "refusal"
        name, content = turn.get(role_key), turn.get(content_key)
        role = self.roles.get(name.lower()) if isinstance(name, str) else None
        if role is None:
            if name is None:
                raise BadRow(field, f"no key of a role among the keys {', '.join(turn)}")
            ways = [
                Way({"labels": {str(name): role}}) for role in guessed_roles(str(name), role_before)
            ]
            raise BadRow(field, f"unknown role {name!r}", *ways)
        other_keys = {
            key: value for key, value in turn.items() if key not in (role_key, content_key)
        }
        trained = not other_keys or self.read_weights(other_keys, role, field, weighted)
        if role == "system" and content is None:
            return []
        if turn.keys().isdisjoint((*CONTENT_KEYS, *CALL_KEYS, *REASONING_KEYS)):
            keys = ", ".join(map(str, turn))
            raise BadRow(field, f"a turn has no key of a content among its keys {keys}")
        calls = as_list(first_value(turn, CALL_KEYS))
        if str(name).lower() in CALL_ROLES:
            content, calls = None, [content]
        parts = read_parts(content, field)
        if role != "assistant":
            turns = [Turn("tool", text, links=(link,)) for text, link in parts["result"]]
            if parts["text"] or not turns:
                links = (link_of_result(turn),) if role == "tool" else ()
                turns.append(Turn(role, only_texts(parts, field), links=links))
            return turns
        if parts["result"]:
            raise BadRow(field, "an assistant turn contains a tool's result")
        reasoning = first_value(turn, REASONING_KEYS)
        if reasoning is None:
            reasoning = "\n".join(parts["thought"]) or None
        if reasoning is None and thought:
            reasoning, trained = thought.content, trained and thought.trained
        all_calls = read_calls([*calls, *parts["call"]], field)
        spoken = [call_text(call, field) for call in all_calls]
        if parts["text"] or not spoken:
            spoken.insert(0, require_text("".join(parts["text"]), field))
        answer = with_reasoning("\n".join(spoken), reasoning, field, self.strip)
        return [Turn(role, answer, trained, tuple(map(link_of_call, all_calls)))]

    def read_weights(self, keys: dict[str, Any], role: str, field: str, weighted: bool) -> bool:
        """Return False if a weight among the keys of a turn is 0, and note the keys that nothing reads.
        Raise ChangesMeaning for a key that changes what the turn means, but that is not read."""
        is_answer, trained = role == "assistant", True
        for key, value in keys.items():
            if key in self.read_keys or is_empty(value):
                continue
            name, column = str(key).lower(), f"{field}.{key}"
            if name in TURN_WEIGHTS:
                is_on = is_trained(value, column)
                if is_on != is_answer and not (weighted and is_answer):
                    raise ChangesMeaning(column)
                trained = trained and is_on
            elif name in FLAGS_OF_TURNS:
                raise ChangesMeaning(
                    column, "may say what is trained, but only `train: false` is read"
                )
            elif name in CHANGING or (name == "name" and role != "tool"):
                raise ChangesMeaning(column)
            elif name != "name":
                self.unread_keys[column] = None
        return trained

    def cuts_requests(self) -> bool:
        """Return True if a last request without an answer is cut off."""
        return self.shape == "cut" and self.answered

    def order(self, turns: list[Turn], ends_with_answer: bool = False) -> list[Turn]:
        """Return a conversation in an order that chat templates render, reshaped as `data.form.turns` says.
        `ends_with_answer`: cut a last request, too. Raise BadRow for another order, with the word that mends it."""
        reason = order_error(turns)
        ends_open = turns[-1].role != "assistant" and ends_with_answer and self.cuts_requests()
        if not reason and not ends_open:
            return turns
        reshaped = SHAPES[self.shape](turns)
        if order_error(reshaped):
            words = [word for word, reshape in SHAPES.items() if not order_error(reshape(turns))]
            ways = [Way({"data.form.turns": word}) for word in words[:1] if reason]
            none = "" if ways else ", and no data.form.turns leaves an exchange of it"
            raise BadRow("", f"{reason or 'no assistant turn'}{none}", *ways)
        self.reshaped += 1
        return reshaped

    def remarks(self) -> list[str]:
        """Return the notes for the user on conversations that were reshaped, and on refusals."""
        notes = list[str]()
        if self.reshaped:
            notes.append(
                f"{self.reshaped:,} conversations were reshaped by data.form.turns={self.shape}"
            )
        if self.refusals:
            notes.append(
                f"{self.refusals:,} turns are refusals (`refusal`), which were read as texts"
            )
        return notes


def guessed_roles(name: str, role_before: str | None) -> list[str]:
    """Return the role that a name of another language may have, else the roles that any name may have, the likelier one
    after a turn of `role_before` first."""
    for role, names in TEXTS["near_roles"].items():
        if name.lower() in names.split():
            return [role]
    return ["assistant", "user"] if role_before == "user" else ["user", "assistant"]


def order_results(turns: list[Turn]) -> list[Turn]:
    """Return the turns with the results of tools in the order of their calls, as templates pair them by place. A turn
    whose calls and results do not all have partners gets a `partner_error`."""
    if not any(turn.links for turn in turns):  # most conversations have no tools
        return turns
    ordered = list[Turn]()
    calls = list[Link]()
    for role, group in groupby(turns, key=lambda turn: turn.role):
        followers = [*group]
        links = [link for turn in followers for link in turn.links]
        if role == "assistant":
            calls = links
        elif ordered and ordered[-1].role == "assistant":
            call_of_result = find_partners(calls, links)
            is_call_as_text = not calls and BEGIN in ordered[-1].content
            if not is_call_as_text:
                error = partner_error(calls, links, call_of_result)
                ordered[-1] = ordered[-1]._replace(partner_error=error)
            if role == "tool" and len(call_of_result) == len(followers):
                by_call = sorted(call_of_result, key=call_of_result.__getitem__)
                followers = [followers[index] for index in by_call]
        ordered += followers
    return [turn._replace(links=()) for turn in ordered]


def order_error(turns: list[Turn]) -> str:
    """Return the error in the order of the turns, or that a tool's call or result has no partner; empty if there is
    none."""
    role_error = role_order_error(tuple([turn.role for turn in turns]))
    return role_error or next((turn.partner_error for turn in turns if turn.partner_error), "")


@lru_cache(maxsize=1000)
def role_order_error(roles: tuple[str, ...]) -> str:
    if "system" in roles[1:]:
        return "a system message is not the first message"
    spoken = roles[1:] if roles[:1] == ("system",) else roles
    if "user" not in spoken:
        return "no user turn"
    steps = zip((None, *spoken), spoken, strict=False)
    if any(role not in NEXT_ROLES[before] for before, role in steps):
        return f"user and assistant do not alternate: {', '.join(spoken)}"
    return ""


def merge_turns(turns: list[Turn]) -> list[Turn]:
    """Return the conversation with the turns of one speaker in a row as one turn, and a later system message as the
    beginning of the user's turn after it."""
    merged: list[Turn] = []
    for turn in turns:
        if turn.role == "system" and merged:
            turn = turn._replace(role="user")
        if merged and merged[-1].role == turn.role != "tool":
            merged[-1] = merged[-1].join(turn, "\n\n")
        else:
            merged.append(turn)
    return merged


def cut_turns(turns: list[Turn]) -> list[Turn]:
    """Return the conversation from its first user turn on, after the system message, up to the last answer before the
    first turn that is out of order, or whose tool calls lack a result."""
    users = [i for i, turn in enumerate(turns) if turn.role == "user"]
    cut = [turn for turn in turns[:1] if turn.role == "system"]
    before = None
    for turn in turns[users[0] :] if users else ():
        if turn.role not in NEXT_ROLES[before] or turn.partner_error:
            break
        cut.append(turn)
        before = turn.role
    while cut and cut[-1].role != "assistant":
        cut.pop()
    return cut


SHAPES: dict[str, Callable[[list[Turn]], list[Turn]]] = {
    "strict": list,
    "merge": merge_turns,
    "cut": cut_turns,
}


def split_off_answer(turns: list[Turn]) -> tuple[list[Turn], str | None]:
    """Return the turns before the last one, and the text of the last one if it is the assistant's; else all and None."""
    if turns[-1].role == "assistant":
        return turns[:-1], turns[-1].content
    return turns, None


# How turns may be written


def turn_objects(value: Any, field: str) -> list[Any]:
    """Return turns as objects with a role. Texts alternate between user and assistant, unless each begins with its
    role. An object with a text for each role gives a turn for each of them."""
    transcript = parse_transcript(value, plain=True)
    if transcript is not None:
        for turn in transcript:
            tag = unread_tag(turn["content"])
            if tag:
                raise BadRow(field, f"a turn holds the mark {tag!r}, which is not read")
        return transcript
    if isinstance(value, str) and not value.lstrip().startswith("["):
        raise BadRow(field, "is a text without marks of turns")
    items = require_list(resolve_turns(value), field)
    if all(isinstance(item, str) for item in items):
        items = [require_words(item, field) for item in items]
        lines = [SPEAKER_LINE.fullmatch(item) for item in items]
        roles = [line[1].lower() if line and line[1].lower() in ROLES else "" for line in lines]
        if all(roles):
            items = [line[2] for line in lines if line]
        else:
            roles = [("user", "assistant")[i % 2] for i in range(len(items))]
        return [{"role": role, "content": item} for role, item in zip(roles, items, strict=True)]
    objects = list[Any]()
    for item in items:
        if is_exchange(item):
            speakers = sorted(item, key=lambda key: TURN_ORDER.index(SPEAKERS[key]))
            objects += [{"role": SPEAKERS[key], "content": item[key]} for key in speakers]
        else:
            objects.append(with_role(item) if has_role(item) else item)
    return objects


def with_role(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn that has a type in place of its role, as LangChain and OpenAI's Responses write it, with a role and a
    content; any other turn unchanged."""
    kind = turn.get("type")
    if first_key(turn, ROLE_KEYS):
        return turn
    if kind == "function_call":
        return {"role": kind, "content": turn}
    if kind == "function_call_output":
        return {"role": "tool", "call_id": turn.get("call_id"), "content": turn.get("output")}
    data = turn.get("data")
    named = data if isinstance(data, dict) else turn
    return {**{key: value for key, value in named.items() if key != "type"}, "role": kind}


def resolve_turns(value: Any) -> Any:
    """Return turns as a list of objects if they are in JSON or in Python's notation, all together or each of them, as
    maps, as an object of lists, or a single object. Any other value is returned unchanged."""
    if has_role(value):
        columns = [*value.values()]
        if not all(isinstance(cells, list) and len(cells) == len(columns[0]) for cells in columns):
            return [value]
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if isinstance(value, str) and WRITTEN_LIST.match(value):
        parsed = parse_notation(value)
        items = [as_object(item) for item in parsed] if isinstance(parsed, list) else []
        return items if any(is_turn(item) for item in items) else value
    if isinstance(value, list) and not all(isinstance(item, dict) for item in value):
        items = [as_object(item) for item in value]
        # one turn with a role is enough: the others are broken turns then, and no texts
        are_turns = any(map(role_of, items)) or all(map(is_turn, items))
        return items if are_turns else value
    return value


def as_object(item: Any) -> Any:
    """Return an object that is written as JSON, in Python's notation or as a map; any other value unchanged."""
    if isinstance(item, str) and item.lstrip().startswith("{"):
        parsed = parse_notation(item)
        return parsed if isinstance(parsed, dict) else item
    if isinstance(item, list) and item and all(isinstance(pair, tuple) for pair in item):
        return dict(item)
    return item


def parse_notation(text: str) -> Any:
    """Return the value of a text in JSON or in Python's notation, else None."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def require_words(value: Any, field: str) -> str:
    """Return a text, as `require_text`. Raise BadRow for turns that are written as text once too often."""
    text = require_text(value, field)
    if text.lstrip()[0] in QUOTES and holds_turns(text):
        reason = "holds turns in the text of JSON: write a list of objects with role and content"
        raise BadRow(field, reason)
    return text


def holds_turns(text: str) -> bool:
    """Return True for a turn, or a list with a turn, in JSON or in Python's notation, also if it is quoted."""
    pending: list[Any] = [text]
    for value in pending:  # which grows
        if isinstance(value, str) and value.lstrip()[:1] in QUOTES:
            pending.append(parse_notation(value))
        elif isinstance(value, list):
            pending += value
        elif role_of(value) and first_key(value, CONTENT_KEYS):
            return True
    return False


def has_role(value: Any) -> bool:
    """Return True for an object with a role, or with a type in its place."""
    if not isinstance(value, dict):
        return False
    return not value.keys().isdisjoint(ROLE_KEYS) or value.get("type") in TYPED_ROLES


def is_exchange(value: Any) -> bool:
    """Return True for an object with a text for each role, such as a request and its answer."""
    return (
        isinstance(value, dict)
        and bool(value)
        and value.keys() <= SPEAKERS.keys()
        and all(isinstance(text, str) for text in value.values())
    )


def is_turn(value: Any) -> bool:
    return has_role(value) or is_exchange(value)


def role_of(turn: Any, roles: Mapping[str, str] = ROLES) -> str | None:
    """Return the role of a turn: system, user, assistant or tool; None if it is not one of these. `roles`: by the names
    that the file has for them."""
    if not has_role(turn):
        return None
    return roles.get(str(first_value(with_role(turn), ROLE_KEYS)).lower())


# Values of turns and rows


def is_blank(value: Any) -> bool:
    """Return True for null, white space, and an empty list or object."""
    return not value.strip() if isinstance(value, str) else value is None or value in ([], {})


def is_empty(value: Any) -> bool:
    """Return True for null, white space, and an empty list or object, also as JSON. Zero and false are not empty."""
    return value.strip() in EMPTY_JSON if isinstance(value, str) else is_blank(value)


def first_key(turn: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Return the first of these keys whose value is not blank; empty if there is none."""
    for key in keys:
        if not is_blank(turn.get(key)):
            return key
    return ""


def first_value(turn: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Return the first value of a turn under these keys that is not blank; None if all are."""
    return turn.get(first_key(turn, keys))


def as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def is_trained(value: Any, column: str) -> bool:
    """Return True for weight 1 and False for weight 0; raise ChangesMeaning for any other."""
    if (flag := FLAGS.get(str(value).lower())) is None:
        raise ChangesMeaning(column, f"is {value!r:.40}, but a weight must be 0 or 1")
    return flag


def require_text(value: Any, field: str) -> str:
    """Return a string that is not blank, or the joined texts of typed parts; raise BadRow for any other value."""
    if not isinstance(value, str):
        if is_parts(value):
            return only_texts(read_parts(value, field), field)
        raise BadRow(field, f"must be text, is {type(value).__name__}")
    if not value.strip():
        raise BadRow(field, "is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(field, "holds half a surrogate pair, which is not a character") from None
    return value


def require_list(value: Any, field: str) -> list[Any]:
    """Return a list that is not empty, also from a string in JSON or in Python's notation, as in a CSV cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_notation(value)
        if value is None:
            raise BadRow(field, "must be a list, but is not JSON")
    if not isinstance(value, list) or not value:
        raise BadRow(field, f"must be a list that is not empty, is {type(value).__name__}")
    return value


# Parts of a turn's content


def is_parts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(kind_of(part) for part in value)


def is_content(value: Any) -> bool:
    """Return True for parts of one content: objects with a type, and no turns, which have a role."""
    return is_parts(value) and not any(map(has_role, value))


def kind_of(part: Any) -> str | None:
    """Return text, thought, call or result; for any other part its type; None if the value is not a part."""
    if not isinstance(part, dict):
        return None
    if has_role(part):
        return None
    if "type" in part:
        return KINDS.get(str(part["type"]), str(part["type"]))
    if part.get("thought") is True:
        return "thought"
    kind = next((KINDS[key] for key in part if key in KINDS), None)
    if (
        kind is None and len(part) == 1
    ):  # Gemini's and Bedrock's pictures are under the name of the type
        kind = next((key for key in part if key in MEDIA_OF_PARTS), None)
    return kind


def read_parts(content: Any, field: str) -> dict[str, list[Any]]:
    """Return the values of a content by kind: text, thought, call or result. A string is one text. A result is its text
    and its link.
    Raise BadRow for a part of a kind that cannot become text."""
    parts = {kind: list[Any]() for kind in READ_PARTS}
    if content is None:
        return parts
    if not is_parts(content):
        parts["text"].append(require_text(content, field))
        return parts
    for part in content:
        kind = str(kind_of(part))
        if kind not in parts:
            medium = MEDIA_OF_PARTS.get(kind, kind)
            way = Way({"columns": {medium: None}}, "to leave such parts out")
            raise BadRow(field, f"a part of type {kind!r} cannot be read", way)
        if "type" not in part:  # Gemini's and Bedrock's are objects under the name of the type
            part = next(
                (part[key] for key in part if key in KINDS and isinstance(part[key], dict)), part
            )
        if kind == "result":
            parts[kind].append((result_text(part), link_of_result(part)))
            continue
        value: Any = None
        if kind == "call" and first_text(part, NAME_KEYS):
            arguments: Any = next((part[key] for key in ARGUMENT_KEYS if key in part), {})
            value = {**part, "name": first_text(part, NAME_KEYS), "arguments": arguments}
        else:
            value = next((part[key] for key in VALUE_KEYS if key in part), None)
        if kind != "call" and not isinstance(value, str):
            raise BadRow(field, f"must be text, is {type(value).__name__}")
        parts[kind].append(value)
    return parts


def only_texts(parts: dict[str, list[Any]], field: str) -> str:
    """Return the text of a content; raise BadRow if it is blank, or has parts of another kind."""
    if parts["thought"] or parts["call"]:
        raise BadRow(field, "must be text, but has a part with a thought or a call")
    return require_text("".join(parts["text"]), field)


def result_text(part: Mapping[str, Any]) -> str:
    """Return the result of a tool as text."""
    content = next((part[key] for key in RESULT_KEYS if key in part), "")
    if kind_of(content) == "text":
        content = [content]
    if is_parts(content):
        return "\n".join(read_parts(content, "content")["text"])
    return content if isinstance(content, str) else json_text(content, "content")


def read_calls(values: Iterable[Any], field: str) -> list[Any]:
    """Return the calls in values that are each a call, several, or these as JSON."""
    calls = list[Any]()
    for value in values:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                if field == "tools":
                    raise BadRow(field, "the list of tools is not JSON", LEAVE_OUT) from None
                raise BadRow(field, "a tool call is not JSON") from None
        calls += as_list(value)
    return calls


def call_text(call: Any, field: str) -> str:
    """Return a tool call as text; its arguments may be an object, or JSON in a string as OpenAI writes them."""
    call = call.get("function", call) if isinstance(call, dict) else None
    if (
        not isinstance(call, dict)
        or not isinstance(call.get("name"), str)
        or call.keys().isdisjoint(ARGUMENT_KEYS)
    ):
        raise BadRow(field, "a tool call must have a name and arguments")
    arguments = call[next(key for key in ARGUMENT_KEYS if key in call)]
    if isinstance(arguments, str):
        values = read_calls([f"[{arguments.strip() or '{}'}]"], field)
        if len(values) != 1:
            raise BadRow(field, "the arguments of a tool call must be one JSON value")
        arguments = values[0]
    elif isinstance(
        arguments, dict
    ):  # Arrow gives each call the arguments of all, those of others as null
        arguments = {name: value for name, value in arguments.items() if value is not None}
    call_json = json_text({"name": call["name"], "arguments": arguments}, field)
    return f"{BEGIN}\n{require_text(call_json, field)}\n{END}"


def json_text(value: Any, field: str) -> str:
    """Return a value as JSON. Raise BadRow for a date, or another value of a table that JSON does not have."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(field, f"{error}. Write it as text") from None


def with_reasoning(answer: str, reasoning: Any, field: str, strip: bool) -> str:
    """Return an answer with its reasoning before it; with `strip`, without any reasoning."""
    if strip:
        spoken = answer_behind(answer)
        if answer.strip() and not spoken.strip():
            way = Way({"reasoning": "keep"}, "to keep the thought")
            raise BadRow(field, "has a thought and no answer behind it", way)
        return require_text(spoken, field)
    if reasoning is None or answer.lstrip().startswith(tuple(MARKS)):
        return answer
    return f"<think>\n{require_text(reasoning, field).strip()}\n</think>\n\n{answer}"


# The turns of a row besides its messages


def with_tools(turns: list[Turn], tools: Any) -> list[Turn]:
    """Return the conversation with its tools in the system message, unless the system message has tools already."""
    tool_objects = read_calls([tools], "tools")
    if not all(isinstance(tool, dict) for tool in tool_objects):
        raise BadRow("tools", "must be a list of objects", LEAVE_OUT)
    system, spoken = split_system(turns)
    if system and "<tools>" in system.content:
        return turns
    lines = "\n".join(json_text(tool, "tools") for tool in tool_objects)
    instructions = Turn("system", require_text(TOOLS.format(lines), "tools"))
    return [system.join(instructions, "\n\n") if system else instructions, *spoken]


def split_system(turns: list[Turn]) -> tuple[Turn | None, list[Turn]]:
    """Return the system message, if the first turn is one, and the other turns."""
    if turns and turns[0].role == "system":
        return turns[0], turns[1:]
    return None, turns


def context_turns(row: Mapping[str, Any]) -> list[Turn]:
    """Return the turns before the request: the system message, and Alpaca's `history` of requests and answers."""
    turns = [Turn("system", system_text(row["system"]))] if "system" in row else []
    if "history" not in row:
        return turns
    history = require_list(row["history"], "history")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history", "must be a list of pairs, a request and its answer", LEAVE_OUT)
    for request, answer in history:
        turns.append(Turn("user", require_text(request, "history")))
        turns.append(Turn("assistant", require_text(answer, "history")))
    return turns


def system_text(value: Any) -> str:
    """Return the text of a system message, which may be an object, or begin with `SYSTEM: `."""
    if isinstance(value, dict):
        value = first_value(value, CONTENT_KEYS)
    return require_text(require_text(value, "system").removeprefix("SYSTEM: "), "system")
