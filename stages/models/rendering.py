"""Rendering a chat template within bounds: it is a program of somebody's, and may loop for ever or fill the memory."""

import multiprocessing
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_longlong
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.store.records import Message

SECONDS = 5.0  # of computing
MEMORY = 1 << 30  # bytes beside what the process holds already
LENGTH = 1 << 20  # characters of a conversation of a few words
# Conversations that every template is tried on, and whose rendering a contract keeps.
GOLDEN: list[list[Message]] = [
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Größer als 3? {yes/no}"},
        {"role": "assistant", "content": "- ja, 日本"},
    ],
]


class ContractError(UserError):
    """A rendering that breaks the contract."""


class Unbounded(UserError):
    """A rendering that took too much time or memory, or gave too much text."""


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message] | list[list[Message]], **options: Any
) -> Any:
    """The rendered conversation, or several, as token ids, with what `options` ask for beside them.

    Raises:
        Unbounded: where that takes longer than SECONDS.
    """
    only_ids = {"return_attention_mask": False}
    with within(SECONDS):
        return tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, tokenizer_kwargs=only_ids, **options
        )


def try_out(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> None:
    """Raise Unbounded where a short conversation takes too much. It is rendered in a process of its own: bounds of
    memory and time hold for whole processes, other threads' too, and what overruns them may end one."""
    alone = multiprocessing.get_context("fork")
    length = alone.RawValue("q", 0)
    child = alone.Process(target=_measure, args=(tokenizer, messages, length))
    child.start()
    child.join()
    if child.exitcode == -signal.SIGPROF:
        raise Unbounded(f"it takes longer than {SECONDS:g} s")
    if child.exitcode:
        raise Unbounded(f"it takes more than {MEMORY / 2**30:.0f} GiB of memory")
    if length.value > LENGTH:
        raise Unbounded(f"it makes {length.value:,} characters of a few words")


def _measure(tokenizer: PreTrainedTokenizerBase, messages: list[Message], length: c_longlong) -> None:
    """Fill in the length of what is rendered. This process ends by a signal where that takes too long, and with a
    status where it takes too much memory. What else may be wrong with a template shows when it is used."""
    statm = Path("/proc/self/statm")
    held = int(statm.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() if statm.exists() else 1 << 50
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [held + MEMORY, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        length.value = len(tokenizer.apply_chat_template(messages, tokenize=False))
    except MemoryError:
        raise SystemExit(1) from None
    except Exception:
        raise SystemExit(0) from None


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Unbounded inside where it computes for longer. No clock is asked: a machine may be busy with others, and a
    process be stopped for a while. Only a main thread can be interrupted: others are not bounded."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Unbounded(f"it takes longer than {seconds:g} s")

    handler, timer = signal.signal(signal.SIGPROF, stop), signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, *timer)
        # One that another thread still holds would end the process by default.
        signal.signal(signal.SIGPROF, signal.SIG_IGN if handler is signal.SIG_DFL else handler)
