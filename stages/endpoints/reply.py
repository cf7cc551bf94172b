"""What a server's answer says, read strictly: a body that is not what it should be is no reply, with a reason."""

import json
from dataclasses import dataclass
from typing import Any


class NoReply(Exception):
    """A call gave nothing that can be used. `again`: another attempt may."""

    def __init__(self, reason: str, again: bool):
        super().__init__(reason)
        self.reason, self.again = reason, again


@dataclass(frozen=True)
class Reply:
    """The text of an answer, how it ended (stop, length, refusal, or a word of the server's), and its tokens where the
    server counts them."""

    text: str
    finish_reason: str
    input_tokens: int | None = None
    output_tokens: int | None = None

    def tokens(self, most: tuple[int, int]) -> tuple[int, int]:
        """Tokens of the request and of the answer; as many as there can be, where the server counts none."""
        given = self.input_tokens, self.output_tokens
        return most[0] if given[0] is None else given[0], most[1] if given[1] is None else given[1]


def read(body: str) -> Reply:
    """The reply in the body of a chat completion.

    Raises:
        NoReply: where there is none in it.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoReply("the body is no JSON" if body.strip() else "the body is empty", again=True) from error
    try:
        choice = content["choices"][0]
        message, finish = choice["message"], choice["finish_reason"]
        refusal, text = message.get("refusal"), message.get("content")
    except (TypeError, LookupError, AttributeError) as error:
        raise NoReply("the body is no chat completion", again=True) from error
    usage = content.get("usage")
    tokens = [count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    if isinstance(refusal, str) and refusal:
        return Reply(whole(refusal), "refusal", *tokens)
    if finish == "content_filter":
        return Reply(whole(text) if isinstance(text, str) else "", finish, *tokens)
    if not isinstance(text, str) or not isinstance(finish, str):
        raise NoReply("the body is no chat completion", again=True)
    return Reply(whole(text), finish, *tokens)


def count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None


def whole(text: str) -> str:
    """The text without half surrogate pairs, which JSON may hold and no file can."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
