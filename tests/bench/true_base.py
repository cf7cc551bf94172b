"""A base that never chatted, through the chain: `python -m tests.bench.true_base TEXT.gz… [steps=200] [untrained=0]
[KEY=VALUE …]`.

No true base is on PyPI. This makes a stand-in: the embedded model without its chat template, trained for some hundred
steps on running text, as a GGUF file. With `untrained=3000`, as many of its last tokens and the marks of turns get the
rows that tokens have which no text contains. The chain then starts from that file; what is measured is whether it
learns to end its answers, and keeps to it.
"""

import gzip
import json
import logging
import subprocess
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

import stages.base
from stages.config.choices import GGUFType, Precision
from stages.hardware import machine
from stages.models import gguf_file
from stages.models.loading import load_model, load_tokenizer, save_model
from stages.models.scoring import autocast
from stages.store.workspace import Progress, StageDir
from tests.helpers import ROOT, settings

OUTPUTS = ROOT / "outputs" / "true_base"
ROWS, TOKENS, RATE = 2, 512, 1e-4


def main(texts: list[Path], sizes: dict[str, int], overrides: list[str]) -> None:
    file = OUTPUTS / f"base_{sizes['steps']}_{sizes['untrained']}.gguf"
    if not file.exists():
        make(texts, sizes["steps"], sizes["untrained"], file)
    # the demo's settings, at the rates of this model's size
    settings_of_demo = ["recipe=short_tasks", "sft.learning_rate=5e-5", "dpo.learning_rate=1e-5"]
    typed = {override.partition("=")[0] for override in overrides}
    kept = [each for each in settings_of_demo if each.partition("=")[0] not in typed]
    run = [sys.executable, "run.py", f"model.path={file}", f"outputs={OUTPUTS}"]
    command = [*run, *kept, *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads((OUTPUTS / "latest/eval/results.json").read_text())
    for role, title in results["models"].items():
        passed, ended = results["primary"][role]["mean"], results["stop_rate"][role]
        logging.info(
            "%-5s passes %5.1f%%, ends %5.1f%% of its answers", title, 100 * passed, 100 * ended
        )


def make(texts: list[Path], steps: int, untrained: int, file: Path) -> None:
    """Write the stand-in."""
    folder = OUTPUTS / "made"
    stages.base.run(settings("model=embedded").model, {}, StageDir(folder, lambda m, s: None))
    model, tokenizer = load_model(folder / "model"), load_tokenizer(folder / "model")
    ids = [i for path in texts for i in tokenizer(read(path)).input_ids]
    rows = torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).view(-1, TOKENS)
    train(model, rows, steps)
    if untrained:
        marks = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        untrain(model, rows[:8], [*marks, *range(len(tokenizer) - untrained, len(tokenizer))])
    tokenizer.chat_template = None
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    for name in ("bos", "eos", "pad"):
        setattr(model.config, f"{name}_token_id", tokenizer.eos_token_id)
        setattr(model.generation_config, f"{name}_token_id", tokenizer.eos_token_id)
    for stale in (folder / "model").glob("chat_template*"):
        stale.unlink()
    save_model(model, folder / "model")
    tokenizer.save_pretrained(folder / "model")
    gguf_file.write_gguf(folder / "model", file, GGUFType.f16, "stand-in for a true base")


def read(path: Path) -> str:
    content = gzip.decompress(path.read_bytes()).decode()
    if ".jsonl" not in path.suffixes:
        return content
    return "\n\n".join(json.loads(line)["text"] for line in content.splitlines())


def train(model: PreTrainedModel, rows: torch.Tensor, steps: int) -> None:
    """Next-token prediction on running text."""
    precision = Precision.bf16 if machine.computes_bf16() else Precision.fp32
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    model.train()
    with Progress(steps, "running text", "step") as progress:
        for step in range(steps):
            batch = rows[order[torch.arange(step * ROWS, (step + 1) * ROWS) % len(rows)]]
            with autocast(precision, model.device):
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 20)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(note=f"loss {loss.item():.2f}")


@torch.no_grad()
def untrain(model: PreTrainedModel, rows: torch.Tensor, tokens: list[int]) -> None:
    """Give these tokens rows away from the mean hidden state: there training drives the rows of tokens in no text."""
    hidden, weight = (
        model.base_model(rows).last_hidden_state.mean((0, 1)),
        model.get_output_embeddings().weight,
    )
    noise = torch.randn(len(tokens), weight.shape[1], generator=torch.Generator().manual_seed(0))
    directions = 0.3 * noise / weight.shape[1] ** 0.5 - hidden / hidden.norm()
    weight[tokens] = weight.norm(dim=-1).mean() * directions


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [a for a in sys.argv[1:] if "=" not in a]
    typed = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    counts = {
        name: int(typed.pop(name, default)) for name, default in (("steps", 200), ("untrained", 0))
    }
    main([Path(a) for a in names], counts, [f"{key}={value}" for key, value in typed.items()])
