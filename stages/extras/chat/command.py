"""`stage=chat`: talk to a model in the terminal.

Prompts come from the terminal or, one per line, from a pipe. Answers only depend on the conversation and the seed."""

import io
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from transformers.generation import BaseStreamer

from stages.commands import finished_run
from stages.config.blocks.runtimes import SamplingRuntime
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.extras.chat import Chat
from stages.hardware import process
from stages.models.contract import Contract, load_or_derive_contract
from stages.models.loading import read_context_length
from stages.samplers.generate import GenerateSampler
from stages.samplers.sampler import Completion, Decoding, Request, Sampler
from stages.store.node import Node
from stages.store.plugins import load_class
from stages.store.records import Message, content_id
from stages.store.store import Store

NEW = "/new"
QUIT = "/quit"
# Control characters in an answer that neither move the cursor nor begin an escape sequence.
SAFE_CONTROLS = "".join(c for c in map(chr, range(32)) if c not in "\b\v\f\r\x1b")

# Incomplete characters and joiners: they cannot be printed before the next token.
UNDECIDED_ENDS = ("\ufffd", "\u200c", "\u200d", "\ufe0f")

terminal = Console(highlight=False)  # no colours in a pipe


class AnswerPrinter(BaseStreamer):  # type: ignore[no-untyped-call]
    """Prints an answer during generation, as far as its text cannot change any more."""

    def __init__(self, contract: Contract):
        self.contract = contract
        self.ids = list[int]()
        self.printed = ""

    def put(self, value: torch.Tensor) -> None:
        """Print tokens. The prompt, which comes first and has two dimensions, is not printed."""
        is_prompt = value.dim() > 1
        if not is_prompt:
            self.ids += value.tolist()
            text = self.contract.text(self.ids).strip()
            if not text.endswith(UNDECIDED_ENDS):
                self.print_rest_of(text)

    def end(self) -> None:
        self.print_rest_of(self.contract.text(self.ids).strip())
        terminal.out()

    def print_rest_of(self, text: str) -> None:
        """Print the end of a text of which the beginning is printed."""
        begun = len(self.printed)
        self.printed = visible(text, SAFE_CONTROLS)
        # a Console turns tabs into spaces
        terminal.file.write(self.printed[begun:])
        terminal.file.flush()


class Speaker:
    """A published model that continues conversations in its chat template."""

    def __init__(self, model: Path, cfg: Chat):
        self.cfg = cfg
        self.contract = load_or_derive_contract(model)
        self.context = read_context_length(model)
        runtime = SamplingRuntime(**vars(cfg.runtime), batch_size=1, shard_size=1)
        decoding = Decoding(
            [cfg.temperature],
            cfg.max_new_tokens,
            cfg.precision,
            runtime,
            seed=cfg.seed,
            block="chat",
        )
        opener = load_class("samplers", cfg.sampler, Sampler).open  # type: ignore[type-abstract]
        self.sampler = opener(model, self.contract.stop_ids, decoding)

    def answer(self, messages: list[Message]) -> str:
        """Print and return the next assistant turn. Raise UserError if conversation and answer do not fit in the context."""
        prompt = self.contract.prompt(messages)
        if self.context and len(prompt) + self.cfg.max_new_tokens > self.context:
            way_out = f"Type {NEW} to start again, or lower" if len(messages) > 1 else "Lower"
            needed = f"{len(prompt)} tokens and an answer of {self.cfg.max_new_tokens}"
            raise UserError(
                f"{needed} do not fit in the context of {self.context}. {way_out} chat.max_new_tokens."
            )
        printer = AnswerPrinter(self.contract)
        if isinstance(self.sampler, GenerateSampler):
            self.sampler.streamer = printer
        request = Request(
            content_id(messages), messages, prompt, [self.cfg.temperature], self.cfg.seed
        )
        [(_, [completion])] = self.sampler.complete([request])
        assert isinstance(completion, Completion) and completion.token_ids is not None
        if not printer.ids:  # the sampler is another, which returns whole answers
            printer.put(torch.tensor(completion.token_ids))
            printer.end()
        return self.contract.text(completion.token_ids).strip()


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> None:
    """Talk to a model of a finished run."""
    process.warn_of_versions()
    settings: Chat = vars(cfg)["chat"]
    finished = finished_run.find_run(cfg, nodes, store)
    model = finished.model(settings.model, "chat.model")
    finished_run.require_nodes([model], cfg, store, overrides, finished.settings)
    store.verify(store.folder(model))
    talk(settings, store.folder(model))


def talk(cfg: Chat, node: Path) -> None:
    """Answer prompts in one conversation until the input ends."""
    speaker = Speaker(node / "model", cfg)
    with closing(speaker.sampler):
        if sys.stdin.isatty():
            terminal.out(f"{NEW} forgets the conversation. {QUIT} or Ctrl-D ends it.")
        messages = list[Message]()
        for prompt in read_prompts():
            if prompt == NEW:
                messages = []
                continue
            turns: list[Message] = [*messages, {"role": "user", "content": prompt}]
            try:
                answer = speaker.answer(turns)
            except UserError as error:
                terminal.out(error)
                continue
            messages = [*turns, {"role": "assistant", "content": answer}]


def read_prompts() -> Iterator[str]:
    """Yield the prompts up to `/quit` or the end of input. Lines of a pipe are printed."""
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    while True:
        try:
            line = input("> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == QUIT:
            return
        if line:
            if not is_terminal:
                terminal.out(f"> {visible(line)}")
            yield line
