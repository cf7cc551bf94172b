"""Differences of tokenizer, special tokens, stops and chat template, by what they make of the same texts."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from stages.config.errors import UserError
from stages.evaluation.stored_tensors import StoredTensors
from stages.extras.examine.folders.config_keys import CONFIG, GENERATION
from stages.extras.examine.folders.difference import NOT_SET, Difference, Level, value_text
from stages.extras.examine.folders.key_effects import row_difference
from stages.extras.examine.folders.model_folder import TOKENIZER, ModelFolder
from stages.extras.examine.folders.tensor_names import is_embedding
from stages.models.contract import served_stops
from stages.models.loading import count_embedding_rows, tokens_without_row
from stages.models.rendering import GOLDEN, end_after, render
from stages.store.text_units import count_shared_prefix

# texts in which tokenizers often differ
SAMPLES = [
    "The quick brown fox isn't 12,345 steps away: 3.14!",
    "  two spaces\n\n\ttab , and a dot .",
    "Größe, naïve, Ωμέγα, 日本語, العربية, 🙂",
    "def f(x):\n    return x ** 2  # squared",
]
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
# of an added token: left out of answers, takes the white space at its sides, only as a word, in texts as they are
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
SHORT = 512  # tokens: many prompts are longer
LARGEST_LENGTH = 1 << 40  # transformers writes 1e30 where no length is set
SHOWN = 48  # characters of a difference between two renderings
REFUSED = "refused"


def tokenizer_differences(start: ModelFolder, model: ModelFolder) -> Iterator[Difference]:
    """Yield the differences of both tokenizers. Raise UserError if one cannot be loaded."""
    second, first = (
        model.tokenizer,
        start.tokenizer,
    )  # a fault of the model's is not hidden by one of the start's
    yield from vocabulary_differences(first, second)
    yield from text_differences(first, second)
    yield from special_differences(first, second)
    yield from flag_differences(first, second)
    yield from length_differences(first, second)
    yield from file_differences(start, model)
    yield from template_differences(first, second)
    yield from stop_differences(start, model)
    rowless = rowless_tokens(model)
    if rowless:
        earlier = listed(rowless_tokens(start))
        yield row_difference("tokenizer: without a row", earlier, listed(rowless), Level.breaks)
    copies = template_copies(model)
    if copies:
        earlier = template_copies(start) or "alike"
        yield row_difference("template: two copies", earlier, copies, Level.changes)


def vocabulary_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return the differences of class, size and ids of the vocabulary."""
    differences = list[Difference]()
    if type(first).__name__ != type(second).__name__:
        names = type(first).__name__, type(second).__name__
        differences.append(row_difference("tokenizer: class", *names, Level.differs))
    old, new = first.get_vocab(), second.get_vocab()
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    if added or removed:
        clauses = [f"{len(new):,}"]
        if added:
            clauses.append(f"{len(added):,} more, as {', '.join(added[:3])}")
        if removed:
            clauses.append(f"{len(removed):,} fewer, as {', '.join(removed[:3])}")
        level = Level.changes if removed else Level.differs
        differences.append(
            row_difference("tokenizer: tokens", f"{len(old):,}", "; ".join(clauses), level)
        )
    moved = sorted(token for token in old.keys() & new.keys() if old[token] != new[token])
    if moved:
        example = moved[0]
        text = f"{len(moved):,} tokens at other ids, as {example!r} at {new[example]}"
        differences.append(
            row_difference("tokenizer: ids", f"{example!r} at {old[example]}", text, Level.changes)
        )
    return differences


def text_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return what the tokenizers make of the sample texts, and of a conversation in the start's template: their tokens,
    the texts of these, and what is put around."""
    differences = list[Difference]()
    conversation = rendered(first, 0)
    samples = SAMPLES if conversation in (NOT_SET, REFUSED) else [*SAMPLES, conversation]
    for text in samples:
        old, new = pieces(first, text), pieces(second, text)
        if old != new:
            shared = count_shared_prefix(old, new)
            parts = " ".join(old[shared:])[:SHOWN], " ".join(new[shared:])[:SHOWN]
            differences.append(row_difference("tokenizer: reads", *parts, Level.changes))
            break
    for text in SAMPLES:
        old_text, new_text = written_again(first, text), written_again(second, text)
        if old_text != new_text:
            parts = different_parts(old_text, new_text)
            differences.append(row_difference("tokenizer: writes", *parts, Level.changes))
            break
    for side, start, model in (
        ("before", added_tokens(first)[0], added_tokens(second)[0]),
        ("behind", added_tokens(first)[1], added_tokens(second)[1]),
    ):
        if start != model:
            differences.append(
                row_difference(f"tokenizer: {side} a text", start, model, Level.changes)
            )
    return differences


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Return the tokens of a text with their ids, without any that the tokenizer adds."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return [f"{tokenizer.convert_ids_to_tokens(token)}({token})" for token in ids]


def written_again(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return the text of a text's tokens."""
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids))


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the tokens that the tokenizer puts before and behind a text."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for place in range(len(whole) - len(plain) + 1):
        if whole[place : place + len(plain)] == plain:
            around = whole[:place], whole[place + len(plain) :]
            before, behind = (listed(token_texts(tokenizer, ids)) for ids in around)
            return before, behind
    return listed(token_texts(tokenizer, whole)), "nothing"


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """Return the tokens of ids; an id without a token is written as a number."""
    return [str(tokenizer.convert_ids_to_tokens(token) or token) for token in ids]


def listed(tokens: list[str]) -> str:
    return ", ".join(tokens[:5]) or "nothing"


def special_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return the differences of the special tokens and the sides of padding and truncation."""
    differences = list[Difference]()
    for name in (*SPECIAL, "padding_side", "truncation_side"):
        old, new = getattr(first, name, None), getattr(second, name, None)
        if old != new:
            is_lost_end = name == "eos_token" and new is None
            is_change = is_lost_end or name == "truncation_side"
            level = Level.changes if is_change else Level.differs
            differences.append(
                row_difference(f"tokenizer: {name}", value_text(old), value_text(new), level)
            )
    return differences


def flag_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return the tokens that both have and read, or leave out of answers, in another way."""
    old, new = flags_by_token(first), flags_by_token(second)
    tokens = sorted(token for token in old.keys() & new.keys() if old[token] != new[token])
    if not tokens:
        return []
    token = tokens[0]
    names = [name for name in FLAGS if old[token][name] != new[token][name]]
    before, after = (flags_text(token, names, flags[token]) for flags in (old, new))
    if len(tokens) > 1:
        after += f", of {len(tokens)} such"
    return [row_difference("tokenizer: flags", before, after, Level.changes)]


def flags_text(token: str, names: Sequence[str], flags: dict[str, bool]) -> str:
    values = ", ".join(f"{name} {value_text(flags[name])}" for name in names)
    return f"{token}: {values}"


def flags_by_token(tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, bool]]:
    """Return the flags of all added tokens."""
    flags = dict[str, dict[str, bool]]()
    for token in tokenizer.added_tokens_decoder.values():
        flags[token.content] = {name: getattr(token, name) for name in FLAGS}
    return flags


def length_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return the difference of the length at which programs cut texts."""
    old, new = first.model_max_length, second.model_max_length
    if old == new:
        return []
    level = Level.changes if new < old and new < SHORT else Level.differs
    texts = length_text(old), length_text(new)
    return [row_difference("tokenizer: model_max_length", *texts, level)]


def length_text(length: int) -> str:
    return NOT_SET if length > LARGEST_LENGTH else f"{length:,}"


def file_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return the differences of what tokenizer.json itself does to every text."""
    differences = list[Difference]()
    first, second = backend_settings(start), backend_settings(model)
    for name in ("truncation", "padding"):
        old, new = first.get(name), second.get(name)
        if old != new:
            differences.append(
                row_difference(
                    f"tokenizer.json: {name}", value_text(old), value_text(new), Level.differs
                )
            )
    return differences


def backend_settings(folder: ModelFolder) -> dict[str, Any]:
    """Return the content of tokenizer.json; {} without the file."""
    file = folder.tokenizer_folder / "tokenizer.json"
    if folder.is_gguf or not file.exists():
        return {}
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def template_differences(
    first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase
) -> list[Difference]:
    """Return the differences of the example conversations as both chat templates render them."""
    level = Level.changes if first.chat_template else Level.differs
    differences = list[Difference]()
    prompts = rendered(first, 0, to_answer=True), rendered(second, 0, to_answer=True)
    conversations = rendered(first, 1), rendered(second, 1)
    if prompts[0] != prompts[1]:
        parts = different_parts(*prompts)
        prompt_level = Level.breaks if prompts[1] == REFUSED else level
        differences.append(row_difference("template: a prompt", *parts, prompt_level))
    elif conversations[0] != conversations[1]:
        parts = different_parts(*conversations)
        differences.append(row_difference("template: two turns", *parts, level))
    elif first.chat_template != second.chat_template:
        lengths = template_length(first), template_length(second)
        differences.append(row_difference("template: text", *lengths, Level.differs))
    beginnings = rendered_beginning(first, prompts[0]), rendered_beginning(second, prompts[1])
    if second.chat_template and beginnings[0] != beginnings[1]:
        differences.append(
            row_difference("tokenizer: a rendered prompt begins with", *beginnings, level)
        )
    return differences


def template_length(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{len(tokenizer.chat_template or ''):,} characters"


def rendered(tokenizer: PreTrainedTokenizerBase, number: int, to_answer: bool = False) -> str:
    """Return an example conversation in a tokenizer's template, or its first turn and the beginning of the answer."""
    if not tokenizer.chat_template:
        return NOT_SET
    turns = GOLDEN[number][:1] if to_answer else GOLDEN[number]
    try:
        return render(tokenizer, turns, to_answer=to_answer)
    except UserError:  # some templates refuse a system turn
        return REFUSED


def rendered_beginning(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return how many times BOS stands before a rendered prompt if the tokenizer adds its own tokens."""
    bos = tokenizer.bos_token_id
    if bos is None or text in (NOT_SET, REFUSED):
        return f"{NOT_SET}: no BOS or no template"
    ids = tokenizer(text).input_ids
    count = count_shared_prefix(ids, [bos] * len(ids))
    return f"{count} × {tokenizer.bos_token}"


def different_parts(start: str, model: str) -> tuple[str, str]:
    """Return both texts from a little before their first difference on."""
    place = max(count_shared_prefix(start, model) - SHOWN // 2, 0)
    return part_from(start, place), part_from(model, place)


def part_from(text: str, place: int) -> str:
    """Return the part of a text that the table shows, from a place on."""
    if text in (NOT_SET, REFUSED):
        return text
    lead = "…" if place else ""
    return value_text(f"{lead}{text[place:]}"[: 2 * SHOWN])


def stop_differences(start: ModelFolder, model: ModelFolder) -> list[Difference]:
    """Return the differences of the tokens at which servers stop, and whether the template's end of turn is one."""
    differences = list[Difference]()
    old, new = stops(start), stops(model)
    old_end, new_end = end_of_turn(start.tokenizer), end_of_turn(model.tokenizer)
    is_end_a_stop = new_end in new
    if {*old} != {*new}:
        level = Level.differs if is_end_a_stop else Level.changes
        differences.append(row_difference("stops", listed(old), listed(new), level))
    was_a_stop = old_end in old or not start.tokenizer.chat_template
    if new_end and not is_end_a_stop and was_a_stop:
        start_text = f"{old_end or 'none'}, a stop" if old_end else "no template"
        differences.append(
            row_difference(
                "stops: end of turn", start_text, f"{new_end}, not a stop", Level.changes
            )
        )
    elif (
        new_end and old_end in stops_of_generate(start) and new_end not in stops_of_generate(model)
    ):
        texts = listed(stops_of_generate(start)), listed(stops_of_generate(model))
        differences.append(row_difference("stops: of generate", *texts, Level.changes))
    return differences


def stops_of_generate(folder: ModelFolder) -> list[str]:
    """Return the tokens at which transformers' `generate` stops: it asks no tokenizer, and no config.json beside a
    generation_config.json."""
    settings = folder.read_settings(GENERATION) or folder.read_settings(CONFIG)
    found = settings.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return token_texts(folder.tokenizer, [i for i in ids if i is not None])


def stops(folder: ModelFolder) -> list[str]:
    """Return the tokens at which servers stop. Raise UserError with the words of a damaged file's own row."""
    for name in (GENERATION, CONFIG):
        folder.read_settings(name)
    return token_texts(folder.tokenizer, served_stops(folder.place, folder.tokenizer))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the token that ends a turn by the chat template; '' if there is none."""
    text = rendered(tokenizer, 0)
    if text in (NOT_SET, REFUSED):
        return ""
    ends = end_after(tokenizer, text, GOLDEN[0][-1]["content"])
    return listed(token_texts(tokenizer, ends)) if ends else ""


def rowless_tokens(folder: ModelFolder) -> list[str]:
    """Return the tokens for which the embedding has no row: that of an adapter, if it brings one."""
    if folder.is_gguf or folder.config is None:
        return []
    rows = count_embedding_rows(folder.place)
    if folder.adapter:
        brought = StoredTensors.of_folder(folder.adapter).shapes
        rows = max([rows, *(shape[0] for name, shape in brought.items() if is_embedding(name))])
    return tokens_without_row(folder.tokenizer, rows)


def template_copies(folder: ModelFolder) -> str:
    """Return the sizes of two chat templates in one folder that differ; '' without two."""
    place = folder.tokenizer_folder
    if folder.is_gguf or not (place / "chat_template.jinja").exists():
        return ""
    own_file = (place / "chat_template.jinja").read_text(encoding="utf-8-sig")
    if not (place / TOKENIZER).exists():
        return ""
    settings = json.loads((place / TOKENIZER).read_text(encoding="utf-8"))
    copy = settings.get("chat_template")
    if not isinstance(copy, str) or copy == own_file:
        return ""
    return f"{len(own_file):,} and {len(copy):,} characters"
