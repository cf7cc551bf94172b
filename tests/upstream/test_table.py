"""No seam is missed: what the code reaches for in other people's libraries, against the table. And its page."""

import ast
import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from stages.config.installation import ROOT
from stages.objectives.dpo import StoredReferenceTrainer
from stages.objectives.sft import SupervisedTrainer
from tests.upstream.parts import Parts
from tests.upstream.seams import PAGE, SEAMS, TABLE, table

HOUSE = ROOT / "stages"
SOURCES = [ROOT / "run.py", *sorted(HOUSE.rglob("*.py"))]
# Modules that their libraries' documentation names. What comes from any other is in the table.
DOCUMENTED = {
    "accelerate",
    "accelerate.utils",
    "bitsandbytes.nn",
    "datasets",
    "filelock",
    "gguf",
    "gguf.quants",
    "huggingface_hub",
    "lm_eval",
    "lm_eval.api.model",
    "lm_eval.tasks",
    "math_verify",
    "mlflow",
    "mlflow.entities",
    "huggingface_hub.errors",
    "hydra",
    "hydra.core.config_store",
    "hydra.core.hydra_config",
    "hydra.core.override_parser.overrides_parser",
    "hydra.core.plugins",
    "hydra.errors",
    "hydra.experimental.callback",
    "hydra.types",
    "hydra.utils",
    "jinja2",
    "jinja2.ext",
    "jinja2.meta",
    "jinja2.nodes",
    "jinja2.parser",
    "jinja2.sandbox",
    "markupsafe",
    "obstore",
    "obstore.exceptions",
    "obstore.store",
    "vllm",
    "vllm.model_executor.layers.vocab_parallel_embedding",
    "vllm.platforms",
    "numpy",
    "safetensors.torch",
    "numpy.typing",
    "omegaconf",
    "omegaconf.errors",
    "httpx2",
    "openai",
    "ray",
    "ray.exceptions",
    "packaging.requirements",
    "packaging.specifiers",
    "peft",
    "pyarrow",
    "pyarrow.compute",
    "pyarrow.parquet",
    "rich.console",
    "rich.table",
    "rich.text",
    "safetensors",
    "starlette.applications",
    "starlette.requests",
    "starlette.responses",
    "starlette.routing",
    "starlette.types",
    "tokenizers",
    "tokenizers.decoders",
    "tokenizers.models",
    "torch.nn",
    "tokenizers.pre_tokenizers",
    "tokenizers.trainers",
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.nn.attention.varlen",
    "torch.nn.functional",
    "torch.nn.utils.rnn",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "torch.utils.tensorboard",
    "tqdm",
    "torch.distributed.tensor",
    "transformers",
    "transformers.integrations",
    "transformers.integrations.sdpa_attention",
    "transformers.modeling_outputs",
    "transformers.utils",
    "trackio",
    "trl",
    "uvicorn",
    "wandb",
    "yaml",
}
# Attributes of their objects that their documentation says may be set.
SETTABLE = {
    "activation_checkpointing",
    "gradient_checkpointing",
    "chat_template",
    "data",
    "decoder",
    "eos_token",
    "eos_token_id",
    "forward",
    "generation_config",
    "last_hidden_state",
    "name_or_path",
    "pad_token",
    "pad_token_id",
    "pre_tokenizer",
    "router_logits",
    "should_evaluate",
    "should_save",
    "should_training_stop",
    "train_dataset",
    "sync_gradients",
    "caption",
    "caption_justify",
    "filters",
    "raiseExceptions",
    "__file__",
    "restype",
    "argtypes",
    "daemon",
    "max_num_seqs",
    "max_num_batched_tokens",
    "info",
    "tag",
}
# Methods of theirs that our trainers override on purpose, beside the private ones in the table.
OVERRIDDEN = {
    "__init__",
    "compute_loss",
    "get_batch_samples",
    "get_train_dataloader",
    "training_step",
}
OVERRIDDEN |= {"create_scheduler", "evaluation_loop", "prediction_step"}


@dataclass(frozen=True)
class Reach:
    """Something of a library's that a file of ours names."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"stages/{self.file}:{self.line}: {self.name}"

    @property
    def is_watched(self) -> bool:
        words = self.name.rpartition(":")[2].split(".")
        for seam in SEAMS:
            if self.file in seam.files and (
                self.name.rstrip(":") == seam.module
                or {*words} & {*seam.path[-1:], *seam.place.split()[1:]}
            ):
                return True
        return False


def reaches(path: Path) -> Iterator[Reach]:
    """Imports from places that no documentation names; private attributes; and what is put into their objects, but for
    the `ctx` of an autograd function, which is there to be given attributes."""
    file = str(path.relative_to(HOUSE)) if path.is_relative_to(HOUSE) else path.name
    tree = ast.parse(path.read_text())
    library_names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module, name, known_as in imported(node):
                library_names.add(known_as)
                if module not in DOCUMENTED or is_private(name):
                    yield Reach(file, node.lineno, f"{module}:")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (
            is_private(node.attr) or not isinstance(node.ctx, ast.Load)
        ):
            base = ast.unparse(node.value)
            stored = not isinstance(node.ctx, ast.Load) and base.split(".")[0] not in (
                "self",
                "cls",
                "os",
                "ctx",
            )
            if is_private(node.attr) and base not in ("self", "cls"):
                yield Reach(file, node.lineno, node.attr)
            elif stored and base in library_names:  # a monkeypatch of a module or a class
                yield Reach(file, node.lineno, f"{base}.{node.attr}")
            elif stored and node.attr not in our_names() | SETTABLE:
                yield Reach(file, node.lineno, node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "setattr",
            "delattr",
            "object.__setattr__",
        ):
            yield Reach(file, node.lineno, ast.unparse(node))
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).startswith("vars(")
            and node.keywords
        ):
            yield from (Reach(file, node.lineno, str(keyword.arg)) for keyword in node.keywords)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "patch.object",
            "patch.multiple",
        ):
            replaced = [
                argument.value for argument in node.args if isinstance(argument, ast.Constant)
            ]
            yield from (
                Reach(file, node.lineno, str(name))
                for name in replaced + [k.arg for k in node.keywords]
            )


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str, str]]:
    """Module, name in it, and our name for it, of other people's packages."""
    for alias in node.names:
        module, name = (
            (node.module or "", alias.name)
            if isinstance(node, ast.ImportFrom)
            else (alias.name, "")
        )
        if module.split(".")[0] in {*sys.stdlib_module_names, "stages", "run"}:
            continue
        if name and is_module(f"{module}.{name}"):
            module, name = f"{module}.{name}", ""
        yield module, name, alias.asname or alias.name.split(".")[0]


def is_module(name: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name) is not None
    return False


def is_private(name: str) -> bool:
    return (
        name.startswith("_") and not name.endswith("_") and name not in ("_replace", "_exit")
    )  # of a NamedTuple and of `os`, which are documented


@cache
def our_names() -> set[str]:
    """Fields and attributes of our own classes."""
    names = set[str]()
    for path in SOURCES:
        for definition in ast.walk(ast.parse(path.read_text())):
            if isinstance(definition, ast.ClassDef):
                for node in ast.walk(definition):
                    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                        names.add(node.target.id)
                    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                        names.add(node.attr)
    return names


@pytest.mark.extended
def test_the_code_reaches_for_nothing_private_that_is_not_in_the_table() -> None:
    missed = [str(reach) for path in SOURCES for reach in reaches(path) if not reach.is_watched]
    assert not missed


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("from trl.trainer.utils import pad", ["trl.trainer.utils:"]),
        ("from trl.trainer import callbacks", ["trl.trainer.callbacks:"]),
        ("import hydra._internal.utils", ["hydra._internal.utils:"]),
        ("from transformers import _something", ["transformers:"]),
        ("trainer._memory_tracker.stop()", ["_memory_tracker"]),
        ("super()._save_checkpoint(model)", ["_save_checkpoint"]),
        ("import yaml\nyaml.SafeDumper = yaml.CSafeDumper", ["yaml.SafeDumper"]),
        ("from trl import DPOTrainer\nDPOTrainer.log = print", ["DPOTrainer.log"]),
        ("model.is_quantized = False", ["is_quantized"]),
        ("del model.config.quantization_config", ["quantization_config"]),
        ("vars(accelerator).update(reduce=sum)", ["reduce"]),
        ("setattr(model, name, value)", ["setattr(model, name, value)"]),
        ("patch.object(fsdp, 'fully_shard', shard)", ["fully_shard"]),
        ("patch.multiple(dpo_trainer, hash_module=None)", ["hash_module"]),
        (
            "import os\nos.environ |= {}\nfrom trl import DPOTrainer\nself._own = model.config.name_or_path",
            [],
        ),
    ],
)
def test_the_scan_sees(line: str, names: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(line)
    assert [reach.name for reach in reaches(file)] == names


def our_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("stages.")]


def library_bases(kind: type) -> list[type]:
    return [
        base
        for base in kind.__mro__
        if not base.__module__.startswith("stages.") and base is not object
    ]


def classes() -> list[type]:
    """Ours that inherit from other people's."""
    trainer_classes = set[type]()
    for path in SOURCES[1:]:
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        trainer_classes |= {
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if our_bases(kind)[:1] == [kind]
        }
    foreign = [
        kind
        for kind in trainer_classes
        if any("." in base.__module__ for base in library_bases(kind))
    ]
    return sorted(foreign, key=lambda kind: kind.__qualname__)


def overridden() -> set[str]:
    """Return the private methods of other libraries' classes that classes of ours override."""
    names = set[str]()
    for kind in classes():
        methods = {
            name
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and is_private(name)
        }
        names |= {
            name for name in methods if any(name in vars(base) for base in library_bases(kind))
        }
    return names


def test_a_private_method_that_is_overridden_is_in_the_table() -> None:
    assert "_precompute_ref_logps" in overridden()
    assert overridden() <= {seam.name for seam in SEAMS}


@pytest.mark.parametrize("kind", [StoredReferenceTrainer, SupervisedTrainer])
def test_what_we_add_to_a_trainer_is_no_name_of_its_own(kind: type[Trainer], parts: Parts) -> None:
    """A method or an attribute of ours that upstream comes to use would change what its trainer does."""
    table = {seam.name for seam in SEAMS}
    upstream = {*dir(parts.instances["DPOTrainer"]), *dir(library_bases(kind)[0])}
    added = {
        name
        for base in our_bases(kind)
        for name in vars(base)
        if not name.startswith(("__", "_abc_"))
    }
    for base in our_bases(kind):
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[base.__module__]))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                added |= {node.attr} if ast.unparse(node.value) == "self" else set()
    assert {"token_budget", "micro_batches", "cfg"} <= added
    # Set back once the loader has its own; declared alone; so that a step's tokens are counted, whatever the model.
    names = {
        "data_collator",
        "aux_loss_enabled",
        *(["model_accepts_loss_kwargs"] if kind is SupervisedTrainer else []),
    }
    assert added & upstream - OVERRIDDEN - table == names


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.place)
def test_the_table_names_files_that_use_the_place(seam: Any) -> None:
    for file in seam.files:
        text = (HOUSE / file).read_text()
        assert " " in seam.place or seam.name in text or seam.path[-2] in text, (
            f"stages/{file} knows no {seam.name}"
        )
    assert len([other for other in SEAMS if other.place == seam.place]) == 1


def test_the_page_has_the_table() -> None:
    """Write it with `python -m tests.upstream.seams`."""
    match = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert match is not None
    assert match[0] == table()
