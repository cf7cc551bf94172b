"""The whole chain at the sizes of a GPU: `python -m tests.bench.gpu_chain [small] [OUTPUTS]`.

Three runs in bf16: the embedded 135M model as in the demo; a randomly initialised Qwen3-shaped model of about
1.5 B parameters with all its weights; one of 8 B with LoRA. Prints seconds, tokens per second and peak memory of every
stage. `small` shrinks the shapes and leaves the 135M model alone, so that the script itself can be tried on a CPU.
"""

import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from stages.config.installation import ROOT
from stages.store.manifest import Manifest
from stages.tasks.generator import generate

SHAPES = {  # of Qwen3's 1.7B and 8B; small ones for a trial
    "1.5B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_key_value_heads": 8},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8},
}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_key_value_heads": 1}
SIZES = ("precision=bf16", "data.tasks.preference=256", "data.tasks.test=96", "data.tasks.unseen_tasks=48")


def main(small: bool, outputs: str) -> None:
    smollm = chain(f"{outputs}/135M", *(["stage=base"] if small else []))
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            model = shaped(Path(folder) / name, SMALL if small else shape, ROOT / smollm)
            adapter = ("sft.adapter=lora", "dpo.adapter=lora") if name == "8B" else ()
            overrides = (f"model.path={model}", *SIZES, *adapter)
            chain(f"{outputs}/{name}", "stage=label", *overrides)
            # It has learnt too little for pairs of its own: the rest of the chain runs on given ones.
            pairs = preferences(Path(folder) / "pairs.json")
            chain(f"{outputs}/{name}", "label=dataset", f"label.path={pairs}", *overrides)


def preferences(file: Path) -> Path:
    """Generated prompts with the reference answer over another prompt's."""
    examples = generate(0, {"preference": 256}, families=[])
    shifted = [examples[-1], *examples[:-1]]
    rows = [
        {"prompt": e.messages, "chosen": e.conversation[-1:], "rejected": other.conversation[-1:]}
        for e, other in zip(examples, shifted, strict=True)
    ]
    file.write_text(json.dumps([r for r in rows if r["chosen"] != r["rejected"]]))
    return file


def chain(outputs: str, *overrides: str) -> Path:
    """Run it, print what every stage took, and return where the base model lies."""
    command = [sys.executable, "run.py", "tracker=none", "stage=eval", f"outputs={outputs}", *overrides]
    subprocess.run(command, cwd=ROOT, check=True)
    links = ROOT / outputs / "latest"
    manifests: dict[str, Manifest] = {p.name: json.loads((p / "manifest.json").read_text()) for p in links.iterdir()}
    logging.info("== %s", " ".join([outputs, *overrides]))
    for stage, m in sorted(manifests.items(), key=lambda item: item[1]["started"]):
        tokens, seconds = m["metrics"].get("tokens"), m["wall_seconds"]
        rate = f"{tokens / seconds:9.0f} tokens/s" if tokens else " " * 18
        gpu = f"{m['peak_gpu_memory'] / 2**30:6.1f} GiB GPU" if m["peak_gpu_memory"] else ""
        logging.info("%10s %8.1f s %s %6.1f GiB %s", stage, seconds, rate, m["peak_memory"] / 2**30, gpu)
    return links / "base" / "model"


def shaped(folder: Path, shape: dict[str, int], tokenizer_of: Path) -> Path:
    """A randomly initialised Qwen3 with the tokenizer of the embedded model."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    torch.manual_seed(0)
    heads = shape["hidden_size"] // 128
    config = Qwen3Config(**shape, num_attention_heads=heads, head_dim=128, vocab_size=len(tokenizer))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rest = [argument for argument in sys.argv[1:] if argument != "small"]
    main("small" in sys.argv, rest[0] if rest else "outputs/gpu")
