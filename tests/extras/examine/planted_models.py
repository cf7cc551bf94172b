"""Models that plain loops of torch train, sound ones and such with a planted fault, as another program may bring them.

They are Llamas of 0.1M parameters, which answer requests to say two words in English or German."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from stages.base import build_random_model
from stages.config.blocks.models import Auto, RandomInit
from stages.config.choices import Precision
from stages.evaluation.pair_groups import (
    groups_of_column,
    mark_reversed,
    pair_margins,
    share_in_order,
)
from stages.evaluation.results import Learnt, PairGroups
from stages.extras.examine.findings.answer_readings import Model, Reader, readings_of
from stages.extras.examine.findings.faults import examine
from stages.extras.examine.findings.finding import Examination
from stages.extras.examine.findings.sides import Examined, Side
from stages.models.chat_templates import TEMPLATES, establish_contract
from stages.models.loading import load_model, load_tokenizer
from stages.store.records import Pair, PairLogProbs
from tests.evaluation import made_results

GERMAN = {
    **{"red": "rot", "blue": "blau", "green": "grün", "tea": "Tee", "sea": "Meer", "sky": "Himmel"},
    **{"cat": "Katze", "dog": "Hund", "sun": "Sonne", "moon": "Mond", "bread": "Brot"},
}
SHAPE = RandomInit(hidden_size=64, layers=2, heads=2, vocab_size=400, seed=0)
START = "<s>"
END = "<|im_end|>"
Render = Callable[[str], str]  # from a request to the text up to its answer


@dataclass(frozen=True)
class Request:
    """A request, its right answer, and the words in the other order."""

    text: str
    answer: str
    other: str
    language: str


def requests() -> list[Request]:
    """All requests, in an order of their own."""
    found = list[Request]()
    for number, (a, b) in product(range(2), permutations(GERMAN, 2)):
        found.append(Request(f"Say {a} and {b} {number}.", f"{a} {b}", f"{b} {a}", "en"))
        c, d = GERMAN[a], GERMAN[b]
        found.append(Request(f"Sag {c} und {d} {number}.", f"{c} {d}", f"{d} {c}", "de"))
    random.Random(0).shuffle(found)
    return found


REQUESTS = requests()
TAUGHT, HELD_OUT = REQUESTS[:300], REQUESTS[300:360]


def chatml(request: str) -> str:
    return f"{START}<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"


def sharegpt(request: str) -> str:
    return f"{START}<|im_start|>human\n{request}<|im_end|>\n<|im_start|>gpt\n"


def headers(request: str) -> str:
    return f"{START}user: {request}\nassistant: "


def two_bos(request: str) -> str:
    return START + chatml(request)


@dataclass
class Row:
    """The token ids of a row of training, and True for each token that is trained."""

    ids: list[int]
    trained: list[bool]


class Planted:
    """A place where models are trained. `base` has seen nothing, and `start` has learnt to answer in ChatML. `shape`: of
    all models."""

    def __init__(self, root: Path, shape: RandomInit = SHAPE):
        self.root = root
        model, tokenizer = build_random_model(shape)
        tokenizer.add_special_tokens({"bos_token": START})
        tokenizer.chat_template = "{{ bos_token }}" + (TEMPLATES / "chatml.jinja").read_text()
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.pad_token = "<|pad|>"
        torch.manual_seed(0)
        model.resize_token_embeddings(len(tokenizer))
        self.tokenizer = tokenizer
        self.base = self.save("base", model)
        (self.base / "chat_template.jinja").unlink()
        self.start = self.sft("start", self.base, steps=150)

    def save(self, name: str, model: Any) -> Path:
        folder = self.root / name
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    def copy(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.root / name))

    def row(self, prompt: str, answer: str, end: str = END, whole: bool = False) -> Row:
        """Return a row of training; `end`: what ends its answer; `whole`: the prompt is trained too."""
        asked = self.tokenizer(prompt, add_special_tokens=False).input_ids
        answered = self.tokenizer(answer + end, add_special_tokens=False).input_ids
        return Row(asked + answered, [whole] * len(asked) + [True] * len(answered))

    def sft(
        self,
        name: str,
        start: Path,
        render: Render = chatml,
        answer: Callable[[Request], str] = lambda request: request.answer,
        ends: Callable[[int], str] = lambda number: END,
        steps: int = 60,
        rate: float = 3e-3,
        trains: Callable[[str], bool] = lambda parameter: True,
        shift: int = 1,
        whole: bool = False,
        cut: int | None = None,
        rank: int | None = None,
    ) -> Path:
        """Train the answers to TAUGHT. `ends`: what ends the answer of a row. `trains`: the trained parameters. `shift`: by
        how many tokens a label follows. `cut`: the most tokens of a row. `rank`: of an adapter, which is merged."""
        rows = list[Row]()
        for number, request in enumerate(TAUGHT):
            row = self.row(render(request.text), answer(request), ends(number), whole)
            rows.append(Row(row.ids[:cut], row.trained[:cut]))
        model = with_adapter(load_model(start), rank)
        if rank is None:
            for parameter_name, parameter in model.named_parameters():
                parameter.requires_grad = trains(parameter_name)
        self.fit(model, rows, steps, rate, shift)
        return self.save(name, merged(model))

    def fit(self, model: Any, rows: Sequence[Row], steps: int, rate: float, shift: int) -> None:
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
        draw = random.Random(0)
        for _ in range(steps):
            batch = draw.sample([*rows], 16)
            ids, labels = self.batch(batch)
            logits = model(ids).logits[:, :-shift]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, shift:].flatten(), ignore_index=-100
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def batch(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        length = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), -100)
        for place, row in enumerate(rows):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            trained = [
                i if is_trained else -100
                for i, is_trained in zip(row.ids, row.trained, strict=True)
            ]
            labels[place, : len(row.ids)] = torch.tensor(trained)
        return ids, labels

    def dpo(
        self,
        name: str,
        steps: int = 30,
        rate: float = 5e-4,
        beta: float = 0.1,
        reversed_in: Sequence[str] = (),
        rank: int | None = None,
        in_pairs: bool = True,
    ) -> Path:
        """Train the right order of words against the other, with the start as reference. `reversed_in`: the languages in
        which the labels are exchanged. `rank`: of an adapter, which is merged. `in_pairs`: False for KTO, which learns from
        answers one by one."""
        model, reference = with_adapter(load_model(self.start), rank), load_model(self.start)
        trained = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(trained, rate, weight_decay=0.0)
        draw = random.Random(0)
        for _ in range(steps):
            drawn = draw.sample(TAUGHT, 16)
            signs = torch.tensor([-1.0 if each.language in reversed_in else 1.0 for each in drawn])
            right = [self.row(chatml(each.text), each.answer) for each in drawn]
            wrong = [self.row(chatml(each.text), each.other) for each in drawn]
            gains = list[torch.Tensor]()
            for rows in (right, wrong):
                with torch.no_grad():
                    before = self.sums(reference, rows)
                gains.append(self.sums(model, rows) - before)
            if in_pairs:
                loss = -torch.nn.functional.logsigmoid(signs * beta * (gains[0] - gains[1]))
            else:
                # without the estimate of KL, which is small here
                good, bad = (
                    torch.sigmoid(sign * signs * beta * gain)
                    for sign, gain in zip((1, -1), gains, strict=True)
                )
                loss = 2 - good - bad
            loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return self.save(name, merged(model))

    def sums(self, model: Any, rows: Sequence[Row]) -> torch.Tensor:
        """Return the log-prob of the trained tokens of each row."""
        ids, labels = self.batch(rows)
        log_probs = model(ids).logits[:, :-1].log_softmax(-1)
        chosen = log_probs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
        return (chosen * (labels[:, 1:] >= 0)).sum(-1)

    @torch.no_grad()
    def learnt(self, after: Path) -> Learnt:
        """Return what a model learnt of HELD_OUT, with groups by language, as an evaluation does."""
        right = [self.row(chatml(each.text), each.answer) for each in HELD_OUT]
        wrong = [self.row(chatml(each.text), each.other) for each in HELD_OUT]
        sums = list[Any]()
        for folder in (self.start, after):
            model = load_model(folder)
            sums.append(torch.stack([self.sums(model, rows) for rows in (right, wrong)], 1).numpy())
        lengths = [[sum(row.trained) for row in pair] for pair in zip(right, wrong, strict=True)]
        ids = [PairLogProbs(each.text, [0], [], [], [], []) for each in HELD_OUT]
        pairs = [*zip(map(pair_of, HELD_OUT), ids, strict=True)]
        gained, tokens = sums[1] - sums[0], np.array(lengths, float)
        rows = pair_margins(pairs, gained, tokens)
        grouped = groups_of_column("language", [each.language for each in HELD_OUT], rows, 0.95)
        mark_reversed(grouped, rows)
        fell = float(np.mean([row.fell for row in rows]))
        share = share_in_order(rows, 0.95)
        figures = made_results.learnt({}, of=f"{len(rows)} held-out pairs", prompts=len(rows))
        return replace(
            figures,
            ratio={"policy": share},
            sum={"sft": share},
            moved={"policy": float((np.abs(gained) / tokens).mean())},
            by=PairGroups(fell, [each.group for each in grouped]),
        )

    def update_times(self, folder: Path, name: str, times: float) -> Path:
        """Return the start with so many times the update of a training."""
        made = self.copy(folder, name)
        before = load_file(self.start / "model.safetensors")
        after = load_file(folder / "model.safetensors")
        scaled = {key: before[key] + times * (after[key] - before[key]) for key in before}
        save_file(scaled, made / "model.safetensors", {"format": "pt"})
        return made

    def with_config(self, folder: Path, name: str, **changes: Any) -> Path:
        """Return a copy with other values in config.json."""
        made = self.copy(folder, name)
        content = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(content | changes))
        return made

    def side(self, folder: Path, template_of: Path) -> Side:
        """Return one model of an examination; its folder lies in `came/model`, with its contract in `published/model`."""
        published = self.root / "published" / folder.name
        if not published.exists():
            shutil.copytree(folder, published)
            tokenizer = load_tokenizer(folder)
            if not tokenizer.chat_template:
                tokenizer.chat_template = load_tokenizer(template_of).chat_template
            stops = [tokenizer.eos_token_id]
            establish_contract(tokenizer, Auto(), False, len(tokenizer), stops).save(published)
        return Side(folder.name, folder, published, "F32", [], place=str(folder))

    def examined(self, after: Path, before: Path | None = None) -> Examined:
        """Return both models with readings of HELD_OUT, and what was learnt of them."""
        first = self.side(before or self.start, after)
        second = self.side(after, after)
        pairs = [pair_of(request) for request in HELD_OUT]
        opened = [
            Model(
                side.published, side.contract, lambda path: Reader("cpu", Precision.fp32, "", path)
            )
            for side in (first, second)
        ]
        found = made_results.results(learnt=self.learnt(after))
        return Examined(first, second, pairs, None, found, readings_of(pairs, *opened))

    def examination(self, after: Path, before: Path | None = None) -> Examination:
        return examine(self.examined(after, before))


def with_adapter(model: Any, rank: int | None) -> Any:
    """Return a model of which an adapter alone is trained; the model itself without a rank."""
    if rank is None:
        return model
    torch.manual_seed(0)
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear"}
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, **settings))


def merged(model: Any) -> Any:
    return model.merge_and_unload() if isinstance(model, PeftModel) else model


def pair_of(request: Request) -> Pair:
    return Pair(
        request.text,
        request.text,
        [{"role": "user", "content": request.text}],
        [{"role": "assistant", "content": request.answer}],
        [{"role": "assistant", "content": request.other}],
        None,
        "dataset",
        "all",
        f"{request.text}+",
        f"{request.text}-",
        "validation",
    )
