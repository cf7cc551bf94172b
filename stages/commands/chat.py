"""`stage=chat`: talk to a model in the terminal, or put every prompt to all of them side by side.

Prompts come from the terminal or, one per line, from a pipe. What is drawn depends on the conversation and the seed
alone: asked again, a model says the same.
"""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

from stages.config.errors import UserError, visible
from stages.config.schema import Chat
from stages.models.contract import Contract, form_of
from stages.models.loading import context, device_of, load_model, sampled_as
from stages.samplers.generate import GenerateSampler
from stages.samplers.sampler import Request
from stages.store.records import Message, content_id

NEW, QUIT = "/new", "/quit"
APART = "Side by side every prompt stands by itself, and nothing is remembered."
# Of the control characters in an answer those that move no cursor and begin no escape sequence.
KEPT = "".join(c for c in map(chr, range(32)) if c not in "\b\v\f\r\x1b")

# A character whose bytes are still to come, and joiners: what they are seen by is still to come.
UNDECIDED = ("\ufffd", "\u200c", "\u200d", "\ufe0f")

terminal = Console(highlight=False)  # without colours where it is a pipe


class Printed(BaseStreamer):  # type: ignore[no-untyped-call]
    """Prints an answer as far as it is decided: what the contract makes of its tokens so far."""

    def __init__(self, terms: Contract):
        self.terms, self.ids, self.text, self.shown = terms, list[int](), "", 0
        self.reading = True

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with every token."""
        if not self.reading:
            self.ids += value.tolist()
            self.text = self.terms.text(self.ids).strip()
            if not self.text.endswith(UNDECIDED):
                self._show()
        self.reading = False

    def _show(self) -> None:
        before = visible(self.text[: self.shown], KEPT)
        terminal.out(visible(self.text, KEPT)[len(before) :], end="")
        self.shown = len(self.text)

    def end(self) -> None:
        self._show()
        terminal.out()


class Speaker:
    """A published model that continues conversations, asked in the form that suits it."""

    def __init__(self, model: Path, cfg: Chat):
        self.cfg, self.terms = cfg, form_of(model)
        self.model = load_model(model, sampled_as(cfg.precision), device_of(cfg.runtime.device))

    def answer(self, messages: list[Message], streamer: BaseStreamer | None = None) -> str:
        """The next assistant turn.

        Raises:
            UserError: where the conversation and an answer are longer than what the model reads.
        """
        prompt = self.terms.prompt(messages)
        longest = context(self.model.config)
        if longest and len(prompt) + self.cfg.max_new_tokens > longest:
            again = f"{NEW} starts again; a" if len(messages) > 1 else "A"
            raise UserError(
                f"{len(prompt)} tokens and an answer of {self.cfg.max_new_tokens} are more than the {longest} that "
                f"the model reads. {again} lower chat.max_new_tokens leaves more room."
            )
        request = Request(content_id(messages), messages, prompt, [self.cfg.temperature], self.cfg.seed)
        sampler = GenerateSampler(self.model, self.terms.stop_ids, self.cfg.max_new_tokens, 1.0, 1, streamer)
        [(_, [completion])] = sampler.complete([request])
        assert completion.token_ids is not None
        return self.terms.text(completion.token_ids).strip()


def talk(cfg: Chat, nodes: dict[str, Path]) -> None:
    """Answer prompts until the end of input: one model in conversation, several each prompt by itself."""
    speakers = {name: Speaker(folder / "model", cfg) for name, folder in nodes.items()}
    if sys.stdin.isatty():
        forgets = APART if cfg.side_by_side else f"{NEW} forgets the conversation."
        terminal.out(f"{forgets} {QUIT} or Ctrl-D ends it.")
    if cfg.side_by_side:
        side_by_side(speakers)
    else:
        converse(*speakers.values())


def converse(speaker: Speaker) -> None:
    messages = list[Message]()

    def say(prompt: str) -> None:
        asked = [*messages, {"role": "user", "content": prompt}]
        answer = speaker.answer(asked, Printed(speaker.terms))
        messages[:] = [*asked, {"role": "assistant", "content": answer}]

    ask(say, messages.clear)


def side_by_side(speakers: dict[str, Speaker]) -> None:
    def say(prompt: str) -> None:
        table = Table(*(Column(name, ratio=1) for name in speakers), expand=True)
        asked = [{"role": "user", "content": prompt}]
        table.add_row(*(Text(visible(speaker.answer(asked), KEPT)) for speaker in speakers.values()))
        terminal.print(table)

    ask(say, lambda: terminal.out(APART))


def ask(say: Callable[[str], None], forget: Callable[[], None]) -> None:
    """Have every prompt answered; one that cannot be is told, and the next one waited for."""
    for prompt in prompts():
        try:
            forget() if prompt == NEW else say(prompt)
        except UserError as error:
            terminal.out(error)


def prompts() -> Iterator[str]:
    """What is typed, up to `/quit` or the end; a pipe's lines are shown as if typed. No UTF-8: told, passed over."""
    typed = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    while True:
        try:
            line = input("> " if typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == QUIT:
            return
        if line and not typed:
            terminal.out(f"> {visible(line)}")
        if any("\udc80" <= character <= "\udcff" for character in line):
            terminal.out("error: this line is not UTF-8, and no model is asked.")
        elif line:
            yield line
