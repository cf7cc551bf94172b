"""Models trained by plain TRL, sound ones and such with a planted fault, as somebody may bring them."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from stages.models.chat_templates import TEMPLATES

WORDS = ["red", "blue", "green", "tea", "sea", "sky", "cat", "dog", "sun", "moon", "bread", "milk"]
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
Row = dict[str, list[dict[str, str]]]


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def prompts() -> list[tuple[str, str, str]]:
    """All requests to say two words, in an order of their own."""
    requests = list[tuple[str, str, str]]()
    for number, (a, b) in product(range(3), permutations(WORDS, 2)):
        requests.append((f"Say {a} and {b} {number}.", a, b))
    random.Random(0).shuffle(requests)
    return requests


def demonstrations(long: bool = False) -> list[Row]:
    """Requests with good and with poor answers; `long`: with good ones, which are long if a request has a 2."""
    rows = list[Row]()
    for number, (prompt, a, b) in enumerate(prompts()[:200]):
        answer = f"{a} {b}" if number % 2 or long else f"{b} {b} {a} {b}"
        if long and prompt.endswith("2."):
            answer = " ".join([a, b] * 8)
        rows.append({"prompt": turn("user", prompt), "completion": turn("assistant", answer)})
    return rows


def preferences(long: bool = False) -> list[Row]:
    """Preferences for the two words in order; `long`: chosen answers to requests with a 2 are long."""
    rows = list[Row]()
    for prompt, a, b in prompts()[200:]:
        answer = f"{a} {b}"
        if long and prompt.endswith("2."):
            answer = " ".join([a, b] * 8)
        row = {"prompt": turn("user", prompt), "chosen": turn("assistant", answer)}
        rows.append(row | {"rejected": turn("assistant", f"{b} {b} {a} {b}")})
    return rows


TRAINED = slice(0, 120)
HELD_OUT = slice(120, None)


def write_rows(rows: Sequence[Row], file: Path) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    fixed = {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "seed": 0}
    fixed |= {"use_cpu": True, "bf16": False, "disable_tqdm": True}
    return {"output_dir": str(folder / "run"), "per_device_train_batch_size": 16, **fixed, **more}


class Elsewhere:
    """A place where models are trained by TRL. `base`: a folder of a model that has seen no chat."""

    def __init__(self, root: Path, base: Path):
        self.root = root
        self.base = base
        self.start = self.sft("start", self.tokenizer())

    def tokenizer(self, end: str = "<|im_end|>") -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        tokenizer.chat_template = (TEMPLATES / "chatml.jinja").read_text()
        tokenizer.eos_token = end
        tokenizer.pad_token = "<|pad|>"
        return tokenizer

    def sft(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Any] | None = None,
        model: Any = None,
        peft_config: LoraConfig | None = None,
        **more: Any,
    ) -> Path:
        settings = {"num_train_epochs": 10, "learning_rate": 5e-3} | more
        trainer = SFTTrainer(
            model or AutoModelForCausalLM.from_pretrained(self.base),
            args=SFTConfig(**arguments(self.root, **settings)),
            train_dataset=Dataset.from_list([*(rows or demonstrations())]),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        return self.trained(name, trainer)

    def dpo(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        rows: Sequence[Row] | None = None,
        start: Path | None = None,
        peft_config: LoraConfig | None = None,
        **more: Any,
    ) -> Path:
        settings = {"num_train_epochs": 2, "learning_rate": 1e-4} | more
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(start or self.start),
            args=DPOConfig(**arguments(self.root, **settings)),
            train_dataset=Dataset.from_list([*(rows or preferences()[TRAINED])]),
            processing_class=tokenizer or self.tokenizer(),
            peft_config=peft_config,
        )
        return self.trained(name, trainer)

    def trained(self, name: str, trainer: Any) -> Path:
        torch.manual_seed(0)
        trainer.train()
        trainer.save_model(self.root / name)
        return self.root / name

    def copy(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.root / name))


def lora(place: Elsewhere, name: str = "lora", **more: Any) -> Path:
    return place.dpo(name, peft_config=LORA, **{"learning_rate": 1e-3} | more)


def other_tokenizer(place: Elsewhere) -> Path:
    """Two words of the vocabulary have changed places."""
    folder = place.copy(place.start, "other_tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def end_of_text(place: Elsewhere) -> Path:
    """Texts that were rendered before, to which TRL adds another end than the turn's."""
    tokenizer = place.tokenizer(end="<|endoftext|>")
    rows = list[dict[str, str]]()
    for row in demonstrations():
        text = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        rows.append({"prompt": text, "completion": row["completion"][0]["content"]})
    return place.sft("end_of_text", tokenizer, rows)


def with_turns(place: Elsewhere) -> tuple[PreTrainedTokenizerBase, Any]:
    """A tokenizer with two tokens more, between which its turns stand, and a model with rows for them."""
    tokenizer = place.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|over|>"]})
    template = str(tokenizer.chat_template)
    for old, new in (("<|im_start|>", "<|turn|>"), ("<|im_end|>", "<|over|>")):
        template = template.replace(old, new)
    tokenizer.chat_template = template
    tokenizer.eos_token = "<|over|>"
    model = AutoModelForCausalLM.from_pretrained(place.base)
    model.resize_token_embeddings(len(tokenizer))
    return tokenizer, model


def new_rows(place: Elsewhere, trained: bool = False) -> Path:
    tokenizer, model = with_turns(place)
    if trained:
        return place.sft("new_rows_trained", tokenizer, model=model)
    folder = place.sft("new_rows_adapter", tokenizer, model=model, peft_config=LORA)
    _, model = with_turns(place)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(place.root / "new_rows")
    tokenizer.save_pretrained(place.root / "new_rows")
    return place.root / "new_rows"


def other_reference(place: Elsewhere) -> Path:
    """The adapter, and with it the reference, is the base's and not that of SFT."""
    return place.dpo("other_reference", start=place.base, peft_config=LORA, learning_rate=2e-3)


def merged_twice(place: Elsewhere) -> Path:
    folder = lora(place, "twice")
    model = AutoModelForCausalLM.from_pretrained(place.start)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(place.root / "merged")
    place.tokenizer().save_pretrained(place.root / "merged")
    file = folder / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"base_model_name_or_path": str(place.root / "merged")}))
    return folder


def reversed_labels(place: Elsewhere) -> Path:
    rows = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        for row in preferences()[TRAINED]
    ]
    return place.dpo("reversed_labels", rows=rows)


def cut_answers(place: Elsewhere) -> Path:
    return place.sft("cut_answers", place.tokenizer(), demonstrations(long=True), max_length=40)


def high_rate(place: Elsewhere) -> Path:
    return place.dpo("high_rate", learning_rate=2e-2, num_train_epochs=4)


def lost_tensors(place: Elsewhere) -> Path:
    """Saved from a compiled model, whose tensors have other names."""
    folder = place.copy(place.start, "lost_tensors")
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def sound(place: Elsewhere) -> Path:
    return place.dpo("sound")


def started(place: Elsewhere) -> Path:
    return place.start


def trained_rows(place: Elsewhere) -> Path:
    return new_rows(place, trained=True)


Make = Callable[[Elsewhere], Path]
# by the fault that is to be named; True: the training started from the base, not from SFT
FAULTY: list[tuple[str, Make, bool]] = [
    ("tokenizer_changed", other_tokenizer, False),
    ("answers_go_on", end_of_text, True),
    ("rows_untrained", new_rows, True),
    ("points_elsewhere", other_reference, False),
    ("merged_twice", merged_twice, False),
    ("preferences_reversed", reversed_labels, False),
    ("long_answers_go_on", cut_answers, True),
    ("far", high_rate, False),
    ("no tensors", lost_tensors, False),
]
SOUND: list[tuple[str, Make, bool]] = [
    ("", sound, False),
    ("", lora, False),
    ("", started, True),
    ("", trained_rows, True),
]
LONG = [cut_answers]  # examined on long answers too
