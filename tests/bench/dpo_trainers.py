"""The trainers that `dpo` and `gpu_chain` compare, on the same token ids and reference log-probs:

ours               as stage=dpo
ours_liger         with Liger's kernels for norms, SwiGLU and rotary embeddings
ours_padded        dpo.forward=padded: every prompt is read twice, and rows are padded
trl                DPOTrainer with its defaults: gradient checkpointing, the reference model beside the policy
trl_tuned          without checkpointing, the reference's log-probs given
trl_liger          trl_tuned with Liger's kernels
trl_padding_free   trl_tuned without padding
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.rows import work

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
LEARNING_RATE = 1e-5
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_liger": {"use_liger_kernel": True},
    "ours_padded": {},
}
TUNED = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
TRL_ARMS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl_tuned": TUNED,
    "trl_liger": {**TUNED, "use_liger_kernel": True},
    "trl_padding_free": {**TUNED, "padding_free": True},
}


def build_trainer(
    arm: str, cfg: Any, rows: list[dict[str, Any]], tokenizer: Any, folder: Path
) -> Any:
    """The trainer of an arm, with the settings of `dpo.Settings`."""
    from datasets import Dataset

    if arm in OURS:
        return our_trainer(cfg, arm, Dataset.from_list(rows), tokenizer, folder)
    columns = [*TOKENS, *(REFERENCE if arm != "trl" else ())]
    return trl_trainer(cfg, arm, Dataset.from_list(rows).select_columns(columns), tokenizer, folder)


def trl_trainer(cfg: Any, arm: str, dataset: Any, tokenizer: Any, folder: Path) -> Any:
    """TRL's own. Nothing of the project is imported for it: its LM head would be ours then."""
    from trl import DPOConfig, DPOTrainer

    class Given(DPOTrainer):  # type: ignore[misc]
        """On rows that are token ids already, with the reference's log-probs where they are to be given."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    micro_batch = cfg.micro_batch if arm == "trl" else cfg.tuned_micro_batch
    args = DPOConfig(
        max_length=cfg.max_length, **trl_arguments(cfg, micro_batch, folder), **TRL_ARMS[arm]
    )
    options = trl_adapter(cfg)
    if arm == "trl" and not options:
        options["ref_model"] = trl_model(cfg)
    trainer = Given(
        trl_model(cfg), args=args, train_dataset=dataset, processing_class=tokenizer, **options
    )
    if args.padding_free and not trainer.padding_free:
        raise NotImplementedError(
            "TRL's DPOTrainer warns that padding_free is unavailable, and pads"
        )
    return trainer


def trl_sft_trainer(cfg: Any, rows: list[dict[str, Any]], folder: Path) -> Any:
    """TRL's trainer with its defaults: gradient checkpointing, padded rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        max_length=cfg.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        **trl_arguments(cfg, cfg.micro_batch, folder),
    )
    return SFTTrainer(
        trl_model(cfg),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(cfg.model),
        **trl_adapter(cfg),
    )


def trl_arguments(cfg: Any, micro_batch: int, folder: Path) -> dict[str, Any]:
    """The arguments that every trainer of TRL's gets."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": cfg.batch_size // micro_batch,
        "num_train_epochs": cfg.epochs,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "seed": cfg.seed,  # of the order, too
        "bf16": cfg.precision == "bf16",
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def trl_model(cfg: Any) -> Any:
    # weights that are not trained may be smaller, as ours are
    is_small = cfg.adapter == "lora" and cfg.precision == "bf16"
    dtype = torch.bfloat16 if is_small else torch.float32
    return AutoModelForCausalLM.from_pretrained(cfg.model, dtype=dtype)


def trl_adapter(cfg: Any) -> dict[str, Any]:
    from peft import LoraConfig

    if cfg.adapter != "lora":
        return {}
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return {"peft_config": lora}


def our_trainer(cfg: Any, arm: str, dataset: Any, tokenizer: Any, folder: Path) -> Any:
    """Build the trainer as stage=dpo does."""
    from stages.config.blocks.arguments import DPOArguments
    from stages.models.loading import load_model, resolve_device
    from stages.objectives.dpo import StoredReferenceTrainer, trainable_model
    from stages.training import budget
    from stages.training.arguments import training_arguments
    from stages.training.batches import EpochSchedule
    from tests.helpers import settings

    shared = ("batch_size", "max_length", "precision", "adapter", "epochs", "seed")
    block = settings(
        *(f"dpo.{key}={getattr(cfg, key)}" for key in shared),
        f"dpo.learning_rate={LEARNING_RATE}",
        f"dpo.forward={'padded' if arm == 'ours_padded' else 'shared_prefix'}",
        "dpo.loss_type=[sigmoid]",
        "dpo.loss_weights=null",
        f"dpo.runtime.micro_batch={cfg.our_micro_batch}",
        f"dpo.runtime.gradient_checkpointing={cfg.our_checkpointing}",
    ).dpo
    block.trainer = DPOArguments(
        **OURS[arm], lr_scheduler_type="constant", extra={"save_strategy": "no"}
    )
    out = work(folder)
    model = Path(cfg.model)
    args = training_arguments(block, out, **StoredReferenceTrainer.arguments)
    rows = dataset.select_columns([*TOKENS, *REFERENCE])
    for name in ("chosen_mask", "rejected_mask"):  # every completion token counts
        rows = rows.add_column(name, [None] * len(rows))
    block = budget.decide_open_settings(block, args, model, out)
    policy = load_model(model, block.start_weights, resolve_device("auto"))
    ids = [str(i) for i in range(len(rows))]
    return StoredReferenceTrainer(
        trainable_model(policy, Path(), block, out),
        cfg=block,
        out=out,
        schedule=EpochSchedule(ids, block.batch_size, block.seed, "dpo"),
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
    )


def warm_up(trainer: Any, row: dict[str, Any]) -> None:
    """Libraries load and kernels are chosen at the first forward and backward: not what is measured."""
    model = trainer.model
    device = trainer.accelerator.device
    ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]] * 2, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=trainer.args.bf16):
        model(
            input_ids=ids, labels=ids, use_cache=False, fused_lm_head=True
        ).log_probs.sum().backward()
    model.zero_grad()
