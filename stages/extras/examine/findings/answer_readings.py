"""Likelihoods of the preferences' chosen answers: under both models' own templates, under other forms, behind other
numbers of BOS, and of the end of turn after each. Where an end is in question, the models answer with room to end."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch

from stages.config.choices import Forward, Precision
from stages.extras.examine.findings.answer_forms import (
    MOST_ANSWER_TOKENS,
    NEAR_OWN,
    Row,
    bos_rows,
    form_rows,
)
from stages.models import scoring
from stages.models.contract import Contract
from stages.models.loading import load_model, read_context_length, resolve_device
from stages.models.rendering import ContractError
from stages.store.records import Pair
from stages.store.splits import draw_order
from stages.store.workspace import Progress

NO_LIMIT = 1_000_000  # tokens of a model whose config has none
MOST_TRIED = 1_000  # pairs
MOST_ANSWERS = 64  # that are read under both models' own templates
GLANCED = 2  # answers by which a few of all other forms are chosen
SHORTLISTED = 4  # of these forms
SCREENED = 8  # answers by which the likeliest of these few is chosen
COMPARED = 32  # further answers, at most, on which that form is compared
FOLLOWED = 16  # answers behind which the likeliest other tokens are read
LIKELIER = 0.05  # nats a token by which another form is clearly likelier
QUESTIONED = 8  # prompts that are answered with room to end
ROOM = 4  # times the longest of their chosen answers
LEAST_ROOM = 128  # tokens
SELDOM = 0.1  # a probability of the end of turn after a whole answer, as of a model that was not taught to end
FELL = 0.1  # a fall of the mean probability of the end of turn
CERTAIN_END = 0.9  # a probability of the end of turn at which nothing else stands in its place


@dataclass
class Answers:
    """A model's readings of whole answers under its own template. `nats`: the mean log-prob of a token of each. `ends`:
    the probability of the end of turn after each."""

    nats: list[float]
    ends: list[float]


@dataclass
class Comparison:
    """The likelihood of answers in another form than the model's own, in nats a token. `title`: the form. `tried`: the
    model's mean on a few answers in each of the likeliest forms of `ways`. The start's are empty where its template has
    not this form, or where no figure of the start's could make a difference."""

    title: str
    tried: dict[str, float]
    ways: int
    own_after: list[float]
    other_after: list[float]
    own_before: list[float]
    other_before: list[float]


@dataclass
class LeftToEnd:
    """Answers to some prompts with room to end. `room`: tokens. `after`, `before`: of each model, whether each ended."""

    room: int
    after: list[bool]
    before: list[bool]


@dataclass
class Readings:
    """What both models make of the chosen answers of `pairs`. `instead`: the probability of each other stop token and of
    the likeliest other token after the first of them, by its spelling, where the end of turn is not certain. `form`,
    `bos`: the
    likeliest other form, and number of BOS. `second_bos`: the probability that BOS follows BOS under the start and under
    the model; None without BOS. `left`: None where no end is in question."""

    pairs: list[Pair]
    before: Answers
    after: Answers
    lengths: list[int]
    instead: dict[str, list[float]] = field(default_factory=dict)
    form: Comparison | None = None
    bos: Comparison | None = None
    second_bos: tuple[float, float] | None = None
    left: LeftToEnd | None = None


class Reader:
    """A loaded model that scores rows and answers prompts."""

    def __init__(self, device: str, precision: Precision, title: str, folder: Path):
        model = load_model(folder, device=resolve_device(device))
        self.model = scoring.install_scoring(model, Forward.padded)
        self.precision = precision
        self.title = title

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Return the log-prob of each token of the completions of rows."""
        scored = [list[float]()] * len(rows)
        lengths = [len(prompt) + len(completion) for prompt, completion in rows]
        progress = Progress(len(rows), f"answers read by {self.title}", "answer")
        with progress, scoring.round_weights_once(self.model.device):
            for batch in scoring.batches_by_length(lengths, None, self.model.device):
                of_batch = scoring.completion_log_probs(
                    self.model, [rows[i] for i in batch], self.precision
                )
                for i, log_probs in zip(batch, of_batch, strict=True):
                    scored[i] = log_probs
                progress.update(len(batch))
        return scored

    @torch.inference_mode()
    def next_token(self, ids: list[int]) -> torch.Tensor:
        """Return the probability of each token behind a text."""
        rows = torch.tensor([ids], device=self.model.device)
        logits = self.model(rows, logits_to_keep=1).logits[0, -1]
        return logits.float().softmax(-1).cpu()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def answers_end(self, prompts: Sequence[list[int]], stops: list[int], room: int) -> list[bool]:
        """Return whether the likeliest answer to each prompt ends within `room` tokens. All are written at once."""
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        padded = [
            stops[:1] * missing + prompt for missing, prompt in zip(padding, prompts, strict=True)
        ]
        ids = torch.tensor(padded, device=self.model.device)
        places = torch.arange(width, device=self.model.device)
        is_prompt = places >= torch.tensor(padding, device=self.model.device)[:, None]
        written = self.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=is_prompt.long(),
            max_new_tokens=room,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
        answers = written[:, width:].tolist()
        return [not set(stops).isdisjoint(answer) for answer in answers]


@dataclass
class Model:
    """A model's folder under the contract of its template, that contract, and how the folder is opened."""

    folder: Path
    contract: Contract
    open: Callable[[Path], Reader]


def readings_of(pairs: Sequence[Pair], before: Model, after: Model) -> Readings | None:
    """Return what both models make of the chosen answers of some pairs, drawn at random; None if either template renders
    none of them within the context. One model is in memory at a time."""
    found = dict[int, tuple[Row, Row]]()
    contexts = [read_context_length(model.folder) for model in (before, after)]
    context = min((length for length in contexts if length), default=NO_LIMIT)
    for place in random_places(pairs)[:MOST_TRIED]:
        first = own_row(pairs[place], before.contract, context)
        second = own_row(pairs[place], after.contract, context)
        if first and second and len(found) < MOST_ANSWERS:
            found[place] = first, second
    if not found:
        return None
    places = sorted(found)
    read = [pairs[place] for place in places]
    own_before = [found[place][0] for place in places]
    own_after = [found[place][1] for place in places]
    forms_after = [partial(form_rows, pair, after.contract) for pair in read]
    forms_before = [partial(form_rows, pair, before.contract) for pair in read]
    bos_after = [partial(bos_rows, row, after.contract) for row in own_after]
    bos_before = [partial(bos_rows, row, before.contract) for row in own_before]

    reader = after.open(after.folder)
    scored_after = reader.score(own_after)
    answers_after = as_answers(scored_after)
    instead = read_instead(reader, after.contract, own_after, answers_after)
    bos_after_bos = second_bos(reader, after.contract)
    form = likeliest(reader, scored_after, forms_after)
    bos = likeliest(reader, scored_after, bos_after)
    questioned = questioned_answers(answers_after)
    left = None
    if questioned:
        room = room_to_end([own_after[i] for i in questioned], context)
        prompts = [own_after[i][0] for i in questioned]
        left = LeftToEnd(room, reader.answers_end(prompts, after.contract.stop_ids, room), [])
    del reader

    reader = before.open(before.folder)
    scored_before = reader.score(own_before)
    answers_before = as_answers(scored_before)
    if left:
        prompts = [own_before[i][0] for i in questioned]
        left.before = reader.answers_end(prompts, before.contract.stop_ids, left.room)
    bos_before_bos = second_bos(reader, before.contract)
    both_bos = None
    if bos_before_bos is not None and bos_after_bos is not None:
        both_bos = (bos_before_bos, bos_after_bos)
    return Readings(
        read,
        answers_before,
        answers_after,
        [len(answer) - 1 for _, answer in own_after],
        instead,
        compare(reader, form, scored_before, forms_before),
        compare(reader, bos, scored_before, bos_before),
        both_bos,
        left,
    )


def random_places(pairs: Sequence[Pair]) -> list[int]:
    """Return the places of pairs in a random order, which depends on the pairs alone."""
    return sorted(range(len(pairs)), key=[draw_order(pair.id) for pair in pairs].__getitem__)


def own_row(pair: Pair, contract: Contract, context: int) -> Row | None:
    """Return prompt and chosen answer with its end, as the model's own template writes them; None if it refuses them, if
    they exceed the context, or if the answer is several turns."""
    if pair.parts_early:
        return None
    with suppress(ContractError):
        prompt, answer = contract.completion(pair.prompt, pair.chosen)
        if len(answer) > 1 and len(prompt) + len(answer) < context:
            return prompt, answer
    return None


def as_answers(scored: Sequence[list[float]]) -> Answers:
    nats = [fmean(log_probs[:-1]) for log_probs in scored]
    ends = torch.tensor([log_probs[-1] for log_probs in scored]).exp()
    return Answers(nats, ends.tolist())


def read_instead(
    reader: Reader, contract: Contract, rows: Sequence[Row], answers: Answers
) -> dict[str, list[float]]:
    """Return the probability of other tokens than the end of turn after the first answers, where the end is not
    certain."""
    if fmean(answers.ends) >= CERTAIN_END:
        return {}
    end = contract.stop_ids[0]
    texts = [[*prompt, *answer[:-1]] for prompt, answer in rows[:FOLLOWED]]
    followers = torch.stack([reader.next_token(text) for text in texts])
    followers[:, end] = 0.0
    likeliest_id = int(followers.mean(0).argmax())
    token_ids = [*contract.stop_ids[1:], contract.tokenizer.eos_token_id, likeliest_id]
    instead = dict[str, list[float]]()
    for token in dict.fromkeys(token_ids):
        if token not in (None, end):
            instead[contract.spelling(token)] = followers[:, token].tolist()
    return instead


def second_bos(reader: Reader, contract: Contract) -> float | None:
    """Return the probability that BOS follows BOS; None if the tokenizer has none, or BOS begins every turn."""
    bos = contract.tokenizer.bos_token_id
    if bos is None or not contract.text_start:
        return None
    return float(reader.next_token([bos])[bos])


def questioned_answers(answers: Answers) -> list[int]:
    """Return the places of the answers after which an end is least likely; none if all have one."""
    order = sorted(range(len(answers.ends)), key=answers.ends.__getitem__)
    seldom = [i for i in order if answers.ends[i] < 0.5]
    # a few answers that go on are no fault
    return seldom[:QUESTIONED] if len(seldom) > len(order) / 10 else []


def room_to_end(rows: Sequence[Row], context: int) -> int:
    """Return the tokens that an answer may have: several times those of the longest chosen one, within the context."""
    wanted = max(LEAST_ROOM, ROOM * max(len(answer) for _, answer in rows))
    return max(1, min(wanted, context - max(len(prompt) for prompt, _ in rows)))


@dataclass
class Likeliest:
    """The form in which a model finds answers likeliest, its mean in each form of the shortlist, how many `ways` there
    were, and the `places` of other answers on which the form is compared."""

    title: str
    tried: dict[str, float]
    ways: int
    places: list[int]
    own: list[float]
    other: list[float]

    @property
    def gain(self) -> float:
        """By how much answers are likelier in the form than under the model's own template, in nats a token."""
        return fmean(self.other) - fmean(self.own)


def likeliest(
    reader: Reader, scored: Sequence[list[float]], rows: Sequence[Callable[[], dict[str, Row]]]
) -> Likeliest | None:
    """Return the other form that a model finds likeliest by the first answers, and both likelihoods on further ones. The
    choice and the comparison are on different answers, so that the best of many forms has no advantage. None if there
    are too few answers, or no other form. `scored`: the log-probs of the answers under its own template."""
    if len(scored) < 2 * SCREENED:
        return None
    screened = [rows_of() for rows_of in rows[:SCREENED]]
    titles = [title for title in screened[0] if all(title in of_row for of_row in screened)]
    own_nats = [cut_nats(log_probs) for log_probs in scored]
    tried = shortlist(reader, titles, screened, own_nats)
    if not tried:
        return None
    title = max(tried, key=tried.__getitem__)
    places = list[int]()
    other_rows = list[Row]()
    for i in range(SCREENED, min(len(scored), SCREENED + COMPARED)):
        other = rows[i]().get(title)
        if other:
            places.append(i)
            other_rows.append(other)
    if len(places) < SCREENED:
        return None
    own = [own_nats[i] for i in places]
    return Likeliest(title, tried, len(titles), places, own, nats_of(reader, other_rows))


def shortlist(
    reader: Reader,
    titles: Sequence[str],
    screened: Sequence[dict[str, Row]],
    own_nats: Sequence[float],
) -> dict[str, float]:
    """Return the model's mean on the screened answers in a few forms: the likeliest of all on the first ones. Forms near
    its own template count only where they are likelier than that, or they would hide every other form."""
    glanced = nats_by_form(reader, titles, screened[:GLANCED])
    own = fmean(own_nats[:GLANCED])
    means = dict[str, float]()
    for title, numbers in glanced.items():
        if not title.startswith(NEAR_OWN) or fmean(numbers) > own:
            means[title] = fmean(numbers)
    likeliest_first = sorted(means, key=means.__getitem__, reverse=True)
    further = nats_by_form(reader, likeliest_first[:SHORTLISTED], screened[GLANCED:])
    return {title: fmean([*glanced[title], *numbers]) for title, numbers in further.items()}


def nats_by_form(
    reader: Reader, titles: Sequence[str], answers: Sequence[dict[str, Row]]
) -> dict[str, list[float]]:
    """Return the likelihood of answers in each form. All are read together, in as few batches as possible."""
    rows = list[Row]()
    for title in titles:
        rows += [of_answer[title] for of_answer in answers]
    read = nats_of(reader, rows)
    count = len(answers)
    return {title: read[i * count :][:count] for i, title in enumerate(titles)}


def compare(
    reader: Reader,
    form: Likeliest | None,
    scored: Sequence[list[float]],
    rows: Sequence[Callable[[], dict[str, Row]]],
) -> Comparison | None:
    """Return how the start reads the same answers in the same form, if its template has them in this form, and if it
    matters: a form that is clearly unlikelier is of interest only where the model left its own template. `scored`: the
    log-probs of the answers under the start's own template."""
    if form is None:
        return None
    own = [cut_nats(scored[i]) for i in form.places]
    without_start = Comparison(form.title, form.tried, form.ways, form.own, form.other, [], [])
    if form.gain <= -LIKELIER and fmean(form.own) >= fmean(own) - LIKELIER:
        return without_start
    others = [rows[i]().get(form.title) for i in form.places]
    other_rows = [row for row in others if row]
    if len(other_rows) < len(others):
        return without_start
    return replace(without_start, own_before=own, other_before=nats_of(reader, other_rows))


def cut_nats(log_probs: Sequence[float]) -> float:
    """Return the likelihood of an answer without its end of turn; of a long one, of its first tokens, as in other forms."""
    return fmean(log_probs[:-1][:MOST_ANSWER_TOKENS])


def nats_of(reader: Reader, rows: Sequence[Row]) -> list[float]:
    return [fmean(log_probs) for log_probs in reader.score(rows)]
