"""Real parts for tests of trainers: a tiny model, its tokenizer, and trainers of TRL's and of ours over it."""

import copy
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

from stages import base
from stages.config.blocks.training import DPO
from stages.config.choices import Forward, Precision
from stages.config.schema import Config
from stages.models import chat_templates, scoring
from stages.models.contract import Contract
from stages.models.loading import load_tokenizer
from stages.models.scoring import tokenize_pair
from stages.objectives.dpo import StoredReferenceTrainer, trl_row
from stages.objectives.sft import SupervisedTrainer, apply_contract
from stages.store.records import Pair, PairLogProbs
from stages.store.workspace import StageDir
from stages.training.arguments import training_arguments
from stages.training.batches import EpochSchedule
from stages.training.token_rows import IGNORED
from tests.helpers import conversational, settings

ANSWERS = (
    "It is a tool.",
    "A toy, and in the hands of a child more.",
    "Positive.",
    "No, or is it?",
    "Yes.",
)


class Parts:
    """Made when first asked for. A check may do anything to what a method returns."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.count = 0

    def new_folder(self) -> Path:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    @cached_property
    def settings(self) -> Config:
        return settings("recipe=tiny", "precision=fp32")

    @cached_property
    def stored(self) -> tuple[Any, Contract]:
        """A tiny Llama, and the contract of its tokenizer. To be copied."""
        init = self.settings.model.random_init
        assert init is not None
        model, tokenizer = base.build_random_model(init)
        folder = self.new_folder()
        tokenizer.save_pretrained(folder)
        rows = model.get_input_embeddings().num_embeddings
        contract = chat_templates.establish_contract(
            load_tokenizer(folder), self.settings.sft.template, True, rows
        )
        return apply_contract(model, contract, 0).eval(), contract

    def model(self) -> Any:
        return copy.deepcopy(self.stored[0])

    @cached_property
    def contract(self) -> Contract:
        return self.stored[1]

    @cached_property
    def pairs(self) -> list[Pair]:
        completions = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
        prompt = [{"role": "user", "content": "Is a kite an animal, a fruit or a tool?"}]
        return [
            Pair(f"{i:04x}", "", prompt, chosen, rejected, None, "", "", "", "", "train")
            for i, (chosen, rejected) in enumerate(pairwise(completions))
        ]

    @cached_property
    def scored(self) -> list[PairLogProbs]:
        """The pairs as the model itself scores them."""
        tokens = [tokenize_pair(pair, self.contract) for pair in self.pairs]
        model = scoring.install_scoring(self.model())
        pad = self.contract.tokenizer.pad_token_id
        for row, (chosen_logps, rejected_logps) in zip(
            tokens, scoring.pair_log_probs(model, tokens, pad, Precision.fp32), strict=True
        ):
            row.chosen_logps, row.rejected_logps = chosen_logps, rejected_logps
        return tokens

    def block(self, **changes: Any) -> DPO:
        rows = changes.pop("micro", len(self.pairs))
        cfg = replace(
            self.settings.dpo,
            **{"batch_size": len(self.pairs), "forward": Forward.padded, **changes},
        )
        return replace(
            cfg, runtime=replace(cfg.runtime, device="cpu", save_steps=1, micro_batch=rows)
        )

    def build_trainer(self, shift: float = 0.0, **changes: Any) -> StoredReferenceTrainer:
        """Our DPO trainer, the stored log-probs of chosen completions shifted by so many nats."""
        cfg = self.block(**changes)
        rows = [trl_row(p, None) for p in self.scored]
        for row in rows:
            row["ref_chosen_logps"] += shift
        out = StageDir(self.new_folder(), lambda metrics, step: None)
        return StoredReferenceTrainer(
            self.model(),
            cfg=cfg,
            out=out,
            schedule=EpochSchedule([p.id for p in self.pairs], cfg.batch_size, cfg.seed, "dpo"),
            args=training_arguments(cfg, out, **StoredReferenceTrainer.arguments),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows[:1]),
            processing_class=self.contract.tokenizer,
        )

    def supervised(self, micro: int, **arguments_of_trl: Any) -> SupervisedTrainer:
        """Our SFT trainer over four rows, two of them trained in part."""
        trainer = replace(self.settings.sft.trainer, **arguments_of_trl)
        cfg = replace(self.settings.sft, batch_size=4, epochs=1.0, trainer=trainer)
        cfg = replace(cfg, runtime=replace(cfg.runtime, device="cpu", micro_batch=micro))
        out = StageDir(self.new_folder(), lambda metrics, step: None)
        rows = [p.prompt_ids + p.chosen_ids for p in self.scored]
        labels = [[IGNORED] * (i % 2 * 9) + ids[i % 2 * 9 :] for i, ids in enumerate(rows)]
        return SupervisedTrainer(
            self.model(),
            cfg=cfg,
            out=out,
            schedule=EpochSchedule([p.id for p in self.scored], cfg.batch_size, cfg.seed, "sft"),
            args=training_arguments(cfg, out, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=Dataset.from_dict({"input_ids": rows, "labels": labels}),
            processing_class=self.contract.tokenizer,
        )

    def trl_trainer(self) -> DPOTrainer:
        """TRL's own trainer."""
        args = DPOConfig(str(self.new_folder()), use_cpu=True, bf16=False, report_to="none")
        return DPOTrainer(
            self.model(),
            ref_model=self.model(),
            args=args,
            train_dataset=conversational(self.pairs),
            processing_class=self.contract.tokenizer,
        )


def loss_of(trainer: Trainer) -> float:
    """TRL's loss on the training rows."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss, _, _ = trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=True)
    return float(loss)
