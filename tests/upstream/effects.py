"""Check the effect of each private API that we use, on real parts, and that each check can fail.

A check is a function that raises. Its `lost` changes the library, or our side, as if upstream had changed: the name
still exists, but our use of it has no effect.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import gguf
import huggingface_hub
import numpy as np
import peft.utils.save_and_load
import pytest
import torch
import wandb
import wandb.cli.beta_sync
from accelerate import Accelerator
from huggingface_hub.errors import OfflineModeIsEnabled
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import OmegaConf
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    TrainerState,
    TrainingArguments,
    trainer_utils,
)
from transformers.generation.streamers import BaseStreamer
from transformers.quantizers.base import HfQuantizer
from trl.kernels import ChunkedLogProbFunction, chunked_logprob
from trl.trainer import dpo_trainer
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_trainer import DataCollatorForPreference

from stages import base
from stages.cli import explain, recipes
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.models import Model
from stages.config.choices import Checkpointing, Forward, GGUFType, Precision, Weights
from stages.config.installation import ROOT
from stages.launch import agent
from stages.models import gguf_file, lm_head, packing, run_attention, scoring
from stages.models.loading import load_model
from stages.objectives import dpo
from stages.objectives.dpo import StoredReferenceTrainer, completion_tokens
from stages.samplers import hf
from stages.samplers.generate import GenerateSampler
from stages.samplers.hf import Prepacked
from stages.samplers.sampler import Request
from stages.samplers.slots import Slots
from stages.tracking import wandb as tracking
from stages.training import budget, micro_batches
from stages.training.batches import EpochSchedule
from stages.training.micro_batches import MicroBatches, StepRows
from stages.training.saving import Checkpoints, newest_complete
from stages.training.token_rows import IGNORED
from stages.training.trainer import ROW_LOSSES, PlumblineTrainer, evaluations_by_step
from tests.helpers import composed
from tests.samplers.test_samplers import SHAPE
from tests.upstream.parts import LN_2, Parts, gradients, largest_difference, loss_of

Check = Callable[[Parts], None]
Change = Callable[[Parts, pytest.MonkeyPatch], None]


class Effect(NamedTuple):
    check: Check
    lost: Change


EFFECTS: dict[str, Effect] = {}


def effect(place: str, lost: Change) -> Callable[[Check], Check]:
    def register_check(check: Check) -> Check:
        assert place not in EFFECTS
        EFFECTS[place] = Effect(check, lost)
        return check

    return register_check


def put(owner: Any, name: str, value: Any) -> Change:
    """Another value in a place."""
    return lambda parts, patch: patch.setattr(owner, name, value, raising=False)


def gone(owner: Any, name: str) -> Change:
    return lambda parts, patch: patch.delattr(owner, name)


def deaf(owner: type, name: str, value: Any) -> Change:
    """An attribute of objects that reads as always, whatever is written to it."""
    return put(owner, name, property(lambda self: value, lambda self, written: None))


def nothing(*args, **options):
    return None


# TRL's DPOTrainer


@effect(
    "trl.trainer.utils:FusedCausalLMOutput", put(trl_utils.FusedCausalLMOutput, "items", {}.items)
)
def an_output_of_many_rows_is_cut_into_those_of_each(parts: Parts) -> None:
    model, ids = (
        scoring.install_scoring(parts.model(), Forward.padded),
        torch.arange(20, 40).view(2, 10),
    )

    def score(rows):
        return model(input_ids=rows, labels=rows, use_cache=False, fused_lm_head=True)

    row, alone = micro_batches.select_row(score(ids), (slice(1, 2),)), score(ids[1:])
    assert torch.allclose(row.log_probs, alone.log_probs, atol=1e-5)


def uncalled(name: str) -> Change:
    """A method that ours overrides, and that is called no more."""
    return lambda parts, patch: patch.delattr(StoredReferenceTrainer, name)


@effect("trl:DPOTrainer._prepare_dataset", uncalled("_prepare_dataset"))
def token_ids_are_trained_as_they_are_given(parts: Parts) -> None:
    token_rows = [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in parts.scored]
    rows = parts.build_trainer().train_dataset
    assert [
        (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in rows
    ] == token_rows


@effect("trl:DPOTrainer._precompute_ref_logps", uncalled("_precompute_ref_logps"))
def the_store_decides_the_loss(parts: Parts) -> None:
    assert loss_of(parts.build_trainer()) == pytest.approx(LN_2, abs=1e-4)
    assert loss_of(parts.build_trainer(shift=-50.0)) < 0.1


def constructed(parts: Parts, name: str) -> int:
    """Return how often TRL's constructor calls a function of its module when it believes that FSDP is on."""
    calls = list[str]()
    with pytest.MonkeyPatch.context() as patch:
        in_trl = property(
            lambda self: sys._getframe(1).f_globals["__name__"] == dpo_trainer.__name__, nothing
        )
        patch.setattr(StoredReferenceTrainer, "is_fsdp_enabled", in_trl, raising=False)
        patch.setattr(dpo_trainer, name, lambda *args, **options: calls.append(name))
        parts.build_trainer()
    return len(calls)


unpatched = put(
    dpo, "patch", SimpleNamespace(multiple=lambda *args, **options: contextlib.nullcontext())
)


@effect("trl.trainer.dpo_trainer:create_model_from_path", unpatched)
def trl_loads_no_second_model(parts: Parts) -> None:
    assert not constructed(parts, "create_model_from_path")


@effect("trl.trainer.dpo_trainer:hash_module", unpatched)
def trl_hashes_no_weights(parts: Parts) -> None:
    assert not constructed(parts, "hash_module")


def logged(trainer: StoredReferenceTrainer, steps: int = 1) -> dict[str, float]:
    """Return what TRL logs after `steps` steps over the training rows."""
    for _ in range(steps):
        gradients(trainer, StepRows(list(trainer.train_dataset)))
    trainer.log({})
    return trainer.state.log_history[-1]


@effect(
    "trl:DPOTrainer()._metrics",
    put(micro_batches, "average_over_step", lambda *args: contextlib.nullcontext()),
)
def a_steps_metrics_are_its_means(parts: Parts) -> None:
    whole, divided = logged(parts.build_trainer()), logged(parts.build_trainer(micro=3))
    assert {"entropy", "logits/chosen", "rewards/margins", "mean_token_accuracy"} <= whole.keys()
    assert divided == pytest.approx(whole, rel=1e-4, abs=1e-5)


@effect(
    "trl:DPOTrainer()._total_train_tokens", deaf(StoredReferenceTrainer, "_total_train_tokens", 0)
)
def a_step_that_failed_counts_no_tokens(parts: Parts) -> None:
    once = logged(parts.build_trainer())["num_tokens"]
    trainer = parts.build_trainer()
    with (
        pytest.raises(MemoryError),
        micro_batches.average_over_step(trainer, trainer.model, [], trainer.count_items),
    ):
        trainer._total_train_tokens += 1000
        raise MemoryError
    assert logged(trainer)["num_tokens"] == once > 0
    assert logged(trainer, 2)["num_tokens"] == 3 * once


@effect("trl:DPOTrainer().loss_weights", deaf(StoredReferenceTrainer, "loss_weights", [1.0, 1.0]))
def weights_set_for_a_batch_weigh_its_losses(parts: Parts) -> None:
    trainer = parts.build_trainer(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0])
    both = loss_of(trainer)
    trainer.loss_weights = [1.0, 0.0]
    assert loss_of(trainer) == pytest.approx(LN_2, abs=1e-4)
    assert both > 1


@effect("trl:DPOTrainer().loss_types", deaf(StoredReferenceTrainer, "loss_types", ["sigmoid"]))
def an_sft_term_is_known_for_one(parts: Parts) -> None:
    assert (
        "sft"
        in parts.build_trainer(loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0]).loss_types
    )


@effect(
    "trl:DPOTrainer names the adapter that it copies `ref`",
    put(PeftModel, "delete_adapter", nothing),
)
def one_adapter_is_left(parts: Parts) -> None:
    assert [*parts.build_trainer(adapter=True).model.peft_config] == ["default"]


def rejected_first(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    collate = DataCollatorForPreference.torch_call

    def swapped(self: Any, rows: Any) -> Any:
        return {
            k: torch.cat(v.chunk(2)[::-1]) if len(v) > len(rows) else v
            for k, v in collate(self, rows).items()
        }

    patch.setattr(DataCollatorForPreference, "torch_call", swapped)


@effect(
    "trl.trainer.dpo_trainer:DataCollatorForPreference stacks chosen over rejected", rejected_first
)
def chosen_is_the_upper_half(parts: Parts) -> None:
    trainer = parts.build_trainer()
    rows = list(trainer.train_dataset)
    expected = tuple(
        sum(len(row[f"{side}_ids"]) for row in rows) for side in ("chosen", "rejected")
    )
    assert completion_tokens(trainer.data_collator(rows)) == expected
    assert expected[0] != expected[1]


def unnamed(*names: str) -> Change:
    def without(parts: Parts, patch: pytest.MonkeyPatch) -> None:
        history = [
            {k: v for k, v in point.items() if k not in names}
            for point in parts.run.state.log_history
        ]
        patch.setattr(parts.run.state, "log_history", history)

    return without


def logged_names(parts: Parts) -> set[str]:
    return {name for point in parts.run.state.log_history for name in point}


@effect("trl:DPOTrainer.log adds its metrics under their names", unnamed("logits/chosen"))
def trl_names_its_metrics(parts: Parts) -> None:
    names = {"entropy", "mean_token_accuracy", "num_tokens"}
    names |= {
        f"{kind}/{side}"
        for kind in ("logits", "logps", "rewards")
        for side in ("chosen", "rejected")
    }
    names |= {
        "rewards/accuracies",
        "rewards/margins",
        "eval_rewards/accuracies",
        "eval_logps/chosen",
    }
    assert names <= logged_names(parts)


# TRL's head


def scored_tokens(parts: Parts) -> list[int]:
    """Return how many of ten tokens, five of them labelled, reach our head after we install it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_utils, "_ChunkedLogProbFunction", ChunkedLogProbFunction)
        patch.setattr(trl_utils, "_use_triton", chunked_logprob._use_triton)
        apply, seen = lm_head.CPULogProbFunction.apply, list[int]()
        patch.setattr(
            lm_head.CPULogProbFunction,
            "apply",
            lambda *arguments: (seen.append(len(arguments[0])), apply(*arguments))[1],
        )
        model = scoring.install_scoring(parts.model(), Forward.padded)
        ids = torch.arange(20, 30)[None]
        model(input_ids=ids, labels=ids.masked_fill(ids < 25, -100), fused_lm_head=True)
    return seen


@effect("trl.trainer.utils:_ChunkedLogProbFunction", put(lm_head, "install_cpu_head", nothing))
def the_head_is_ours(parts: Parts) -> None:
    assert scored_tokens(parts)


@effect("trl.trainer.utils:_use_triton", put(lm_head, "install_cpu_head", nothing))
def the_head_scores_what_counts(parts: Parts) -> None:
    assert scored_tokens(parts) == [5]


def reversed_outputs(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    apply = ChunkedLogProbFunction.apply
    patch.setattr(ChunkedLogProbFunction, "apply", lambda *arguments: apply(*arguments)[::-1])


@effect("trl.kernels:ChunkedLogProbFunction.forward", reversed_outputs)
def trls_head_is_ours_but_for_rounding(parts: Parts) -> None:
    head_arguments = (
        torch.randn(6, 8),
        torch.randn(30, 8),
        None,
        torch.arange(6),
        1.3,
        32,
        None,
        0.5,
        lm_head.STATISTICS,
    )
    for our_value, trl_value in zip(
        lm_head.CPULogProbFunction.apply(*head_arguments),
        ChunkedLogProbFunction.apply(*head_arguments),
        strict=True,
    ):
        assert torch.allclose(our_value.float(), trl_value.float(), atol=1e-4)


@effect("trl.trainer:add_fused_lm_head", put(scoring, "add_fused_lm_head", nothing))
def the_heads_log_probs_are_those_of_the_logits(parts: Parts) -> None:
    ids = torch.arange(20, 30)[None]
    plain = parts.model()(input_ids=ids).logits.log_softmax(-1)
    model = scoring.install_scoring(parts.model(), Forward.padded)
    scored = model(
        input_ids=ids, labels=ids.masked_fill(ids < 25, -100), fused_lm_head=True
    ).log_probs
    expected = plain[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * (ids[:, 1:] >= 25)
    assert torch.allclose(scored, expected, atol=1e-5)


def bound_early(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    add = scoring.add_fused_lm_head

    def bound(model: Any) -> None:
        add(model)
        fused, backbone = model.forward, model.base_model.forward

        def forward(**options: Any) -> Any:
            with pytest.MonkeyPatch.context() as inside:
                inside.setattr(model.base_model, "forward", backbone)
                return fused(**options)

        model.forward = forward

    patch.setattr(scoring, "add_fused_lm_head", bound)


@effect("trl.trainer:add_fused_lm_head looks up model.base_model at every call", bound_early)
def the_head_runs_the_backbone_that_stands_there(parts: Parts) -> None:
    model = scoring.install_scoring(parts.model(), Forward.padded)
    forward, calls = model.base_model.forward, list[int]()
    model.base_model.forward = lambda **options: (calls.append(1), forward(**options))[1]
    ids = torch.arange(20, 30)[None]
    model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert calls


# TRL, the rest


# transformers' Trainer


@effect(
    "transformers:Trainer().current_gradient_accumulation_steps",
    deaf(MicroBatches, "current_gradient_accumulation_steps", 1),
)
def gradients_of_micro_batches_add_up_to_the_steps(parts: Parts) -> None:
    whole, divided = parts.build_trainer(), parts.build_trainer(micro=1)
    rows = StepRows(list(whole.train_dataset))
    assert largest_difference(gradients(whole, rows), gradients(divided, rows)) < 1e-5


@effect("transformers:Trainer.get_batch_samples", gone(MicroBatches, "get_batch_samples"))
def the_tokens_of_a_step_are_counted_before_it_is_divided(parts: Parts) -> None:
    trainer = parts.supervised(micro=1)
    step, messages = trainer.training_step, []
    trainer.training_step = lambda model, rows, items: (
        messages.append(items),
        step(model, rows, items),
    )[1]
    trainer.train()
    trained = sum(label != IGNORED for row in trainer.train_dataset for label in row["labels"][1:])
    assert messages == [trained]


@effect(
    "transformers:Trainer.get_train_dataloader takes the collator from self.data_collator",
    gone(MicroBatches, "get_train_dataloader"),
)
def steps_come_as_rows(parts: Parts) -> None:
    trainer = parts.build_trainer()
    step = next(iter(trainer.get_train_dataloader()))
    assert isinstance(step, StepRows)
    assert [row.keys() for row in step.rows] == [row.keys() for row in trainer.train_dataset]


@effect("transformers:Trainer._get_train_sampler", gone(PlumblineTrainer, "_get_train_sampler"))
def rows_come_in_turn(parts: Parts) -> None:
    trainer = parts.build_trainer()
    trainer.schedule = EpochSchedule([p.id for p in parts.pairs], 3, 0, "dpo")
    assert [*trainer.get_train_dataloader().batch_sampler.sampler] == trainer.schedule.epoch(0)


@effect("transformers:Trainer().lr_scheduler", deaf(StoredReferenceTrainer, "lr_scheduler", None))
def a_short_training_begins_above_0(parts: Parts) -> None:
    trainer = parts.build_trainer(trainer=DPOArguments(warmup_steps=0.1))
    trainer.create_optimizer_and_scheduler(4)
    assert trainer.lr_scheduler.get_last_lr()[0] > 0


@effect(
    "transformers:Trainer.evaluation_loop calls prediction_step, and evaluate logs what it measured",
    gone(PlumblineTrainer, "prediction_step"),
)
def every_rows_loss_is_in_the_log(parts: Parts) -> None:
    trainer = parts.build_trainer()
    metrics = trainer.evaluate()
    (logged,) = evaluations_by_step(trainer).values()
    assert len(logged[ROW_LOSSES]) == len(trainer.eval_dataset)
    assert abs(sum(logged[ROW_LOSSES]) / len(logged[ROW_LOSSES]) - metrics["eval_loss"]) < 1e-5


@effect(
    "transformers:Trainer.log tells loss, grad_norm, eval_loss, train_runtime", unnamed("grad_norm")
)
def what_is_watched_is_logged(parts: Parts) -> None:
    assert {"loss", "grad_norm", "eval_loss", "train_runtime"} <= logged_names(parts)


@effect(
    "transformers.trainer_utils:PREFIX_CHECKPOINT_DIR is `checkpoint`",
    put(trainer_utils, "PREFIX_CHECKPOINT_DIR", "saved"),
)
def a_checkpoint_is_found(parts: Parts) -> None:
    checkpoint = newest_complete(parts.checkpoints)
    assert checkpoint is not None
    assert checkpoint.name == f"{trainer_utils.PREFIX_CHECKPOINT_DIR}-{parts.run.state.global_step}"


@effect(
    "transformers:TrainingArguments.save_only_model",
    deaf(TrainingArguments, "save_only_model", False),
)
def the_last_checkpoint_has_no_optimizer_state(parts: Parts) -> None:
    trainer = parts.build_trainer()
    trainer.create_optimizer_and_scheduler(1)
    last = TrainerState(global_step=1, max_steps=1)
    Checkpoints(300).on_step_end(trainer.args, last, trainer.control)
    trainer._save_checkpoint(trainer.model, None)
    files = {path.name for path in Path(trainer.args.output_dir).rglob("*")}
    assert "model.safetensors" in files
    assert "optimizer.pt" not in files


# transformers' models


@effect(
    "transformers:PreTrainedConfig._attn_implementation",
    put(PreTrainedConfig, "_attn_implementation", property(lambda self: "sdpa", nothing)),
)
def the_attention_that_is_set_is_read(parts: Parts) -> None:
    model = parts.model()
    assert packing.attention_name(model) == "sdpa"
    model.set_attn_implementation("eager")
    assert packing.attention_name(model) == "eager"


@effect(
    "transformers:PreTrainedModel._is_stateful",
    put(RecurrentGemmaForCausalLM, "_is_stateful", False),
)
def a_recurrent_model_does_not_only_attend(parts: Parts) -> None:
    config = RecurrentGemmaConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=20
    )
    model = RecurrentGemmaForCausalLM(config)
    assert model.is_backend_compatible(), "else another model has to stand here"
    assert not packing.has_only_attention(model)
    assert packing.has_only_attention(parts.model())


def without(name: str) -> Change:
    """Our attention, never told what it reads under this name."""

    def register(parts: Parts, patch: pytest.MonkeyPatch) -> None:
        def attention(*arguments: Any, **options: Any) -> Any:
            options.pop(name, None)
            return packing.attention(*arguments, **options)

        patch.setitem(AttentionInterface._global_mapping, packing.ATTENTION, attention)

    return register


@effect("transformers:LlamaModel hands keyword arguments on to its attention", without("layout"))
def a_layout_reaches_attention(parts: Parts) -> None:
    assert packing.install_run_attention(parts.model())


@effect(
    "transformers:MistralModel tells its attention the sliding_window", without("sliding_window")
)
def a_window_is_kept_in_a_packed_row(parts: Parts) -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(sliding_window=4, **SHAPE)).eval()
    ids = torch.arange(20, 40)[None]
    plain = model(ids).logits
    assert packing.pack_segments(model)
    assert torch.allclose(model(ids, position_ids=torch.arange(20)[None]).logits, plain, atol=1e-5)


def one_mask(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    masks = hf.attention_masks
    patch.setattr(
        hf,
        "attention_masks",
        lambda *arguments: dict.fromkeys(masks(*arguments), masks(*arguments)["full_attention"]),
    )


@effect("transformers:Gemma3TextModel takes a mask for each kind of layer", one_mask)
def each_kind_of_layer_has_its_mask(parts: Parts) -> None:
    kinds = {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "head_dim": 8,
    }
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(Gemma3TextConfig(**kinds, **SHAPE)).eval()
    ids, positions = torch.arange(20, 40)[None], torch.arange(20)[None]
    masked = model(
        ids,
        attention_mask=hf.attention_masks(model, positions, 20),
        position_ids=positions,
        use_cache=False,
    )
    assert torch.allclose(masked.logits, model(ids, use_cache=False).logits, atol=1e-5)


@effect(
    "transformers:Cache.update",
    put(Slots, "update", lambda self, keys, values, layer, *_, **__: (keys, values)),
)
def what_our_cache_holds_is_attended_to(parts: Parts) -> None:
    model, prompt = parts.model(), parts.scored[0].prompt_ids
    [(_, [completion])] = hf.HFSampler(model, [2], 6, 1.0, 2).complete(
        [Request("0a", [], prompt, [0.0], 0)]
    )
    expected = parts.model().generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=2
    )
    assert completion.token_ids == expected[0, len(prompt) :].tolist()


class Listener(BaseStreamer):
    def __init__(self) -> None:
        self.token_batches, self.ended = list[list[int]](), False

    def put(self, value: torch.Tensor) -> None:
        self.token_batches.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


@effect(
    "transformers.generation.streamers:BaseStreamer is given the prompt, then token by token",
    put(
        Listener,
        "put",
        lambda self, value: self.given.extend([] if self.given else [value.flatten().tolist()]),
    ),
)
def a_streamer_hears_prompt_and_tokens(parts: Parts) -> None:
    prompt, heard = parts.scored[0].prompt_ids, Listener()
    sampler = GenerateSampler(parts.model(), [2], 4, 1.0, 1)
    sampler.streamer = heard
    [(_, [drawn])] = sampler.complete([Request("0a", [], prompt, [0.0], 0)])
    assert heard.token_batches == [prompt, *([token] for token in drawn.token_ids)]
    assert heard.ended


@effect(
    "transformers:PreTrainedModel().all_tied_weights_keys",
    lambda parts, patch: patch.setattr(
        parts.instances["PreTrainedModel"], "all_tied_weights_keys", {}
    ),
)
def a_tied_head_is_known(parts: Parts) -> None:
    model = parts.instances["PreTrainedModel"]
    assert model.config.tie_word_embeddings
    assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}


@effect(
    "transformers.quantizers.base:HfQuantizer.remove_quantization_config",
    put(HfQuantizer, "remove_quantization_config", nothing),
)
def a_model_from_a_gguf_file_can_be_saved(parts: Parts) -> None:
    folder = parts.new_folder()
    parts.stored[0].save_pretrained(folder)
    parts.contract.tokenizer.save_pretrained(folder)
    file = folder / "gguf" / "model.gguf"
    gguf_file.write_gguf(folder, file, GGUFType.f32, "tiny")
    model, _ = base.read_gguf(file, Model(str(file), None, None))
    model.save_pretrained(folder / "again")
    assert "quantization_config" not in json.loads((folder / "again" / "config.json").read_text())


@effect(
    "transformers.integrations.gguf.gguf_tokenizer_mapping:GGUF_PRE_TOKENIZER_SPLITS",
    put(gguf_file, "GGUF_PRE_TOKENIZER_SPLITS", {}),
)
def llama_cpps_names_are_known(parts: Parts) -> None:
    for name in ("llama3", "qwen2"):
        split = {"type": "Split", "pattern": {"Regex": gguf_file.GGUF_PRE_TOKENIZER_SPLITS[name]}}
        assert (
            gguf_file.pre_tokenizer_name(
                {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}
            )
            == name
        )


@effect(
    "transformers.integrations.gguf.reader:read_gguf_metadata",
    put(base, "read_gguf_metadata", lambda *_: ({}, ())),
)
def scaled_positions_of_a_gguf_file_are_seen(parts: Parts) -> None:
    file = parts.new_folder() / "scaled.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert base.unread_scaling(file) == "rope_freqs.weight"


# accelerate


def gathers(name: str) -> Check:
    def check(parts: Parts) -> None:
        """TRL gathers under this name, and within a step reaches nobody."""
        trainer, calls = parts.build_trainer(), list[str]()
        batch = trainer.data_collator(list(trainer.train_dataset))
        with pytest.MonkeyPatch.context() as patch:
            original = getattr(Accelerator, name)
            patch.setattr(
                Accelerator,
                name,
                lambda self, tensor: (calls.append(name), original(self, tensor))[1],
            )
            trainer.compute_loss(trainer.model.train(), batch)
            outside = len(calls)
            with micro_batches.average_over_step(
                trainer, trainer.model, [batch], trainer.count_items
            ):
                trainer.compute_loss(trainer.model, batch)
        assert outside > 0
        assert len(calls) == outside

    return check


def uncovered(name: str) -> Change:
    def through(parts: Parts, patch: pytest.MonkeyPatch) -> None:
        accelerator = parts.instances["Trainer"].accelerator
        leave = micro_batches.leave_unread
        patch.setattr(
            micro_batches,
            "leave_unread",
            lambda tensor: leave(getattr(Accelerator, name)(accelerator, tensor)),
        )

    return through


for name in ("gather", "gather_for_metrics"):
    effect(f"accelerate:Accelerator.{name}", uncovered(name))(gathers(name))


@effect(
    "accelerate.utils.memory:should_reduce_batch_size",
    put(micro_batches, "should_reduce_batch_size", lambda error: False),
)
def a_lack_of_memory_is_known(parts: Parts) -> None:
    with pytest.raises(RuntimeError) as lacking:
        torch.empty(2**55, dtype=torch.uint8)
    assert micro_batches.should_reduce_batch_size(lacking.value)
    assert not micro_batches.should_reduce_batch_size(RuntimeError("shapes do not match"))


# peft, bitsandbytes


def other_words(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    def warn(text: str) -> None:
        warnings.warn("something else", stacklevel=2)

    patch.setattr(peft.utils.save_and_load, "warnings", SimpleNamespace(warn=warn))


@effect("peft:PeftModel.save_pretrained warns `Could not find a config file`", other_words)
def the_warning_has_these_words(parts: Parts) -> None:
    model = parts.build_trainer(adapter=True).model
    model.peft_config["default"].base_model_name_or_path = "sft/0123456789ab/model"
    with pytest.warns(UserWarning, match="^Could not find a config file") as warning:
        model.save_pretrained(parts.new_folder())
    assert "peft" in Path(warning[0].filename).parts


def deaf_linear(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.nn.modules as bnb

    deaf(bnb.Linear4bit, "support_avx512bf16_for_cpu", True)(parts, patch)


@effect("bitsandbytes.nn:Linear4bit().support_avx512bf16_for_cpu", deaf_linear)
def four_bits_are_scored_as_they_are_trained(parts: Parts) -> None:
    import bitsandbytes.nn.modules as bnb

    folder = parts.new_folder()
    parts.stored[0].save_pretrained(folder)
    model = load_model(folder, Weights.nf4)
    layers = [module for module in model.modules() if isinstance(module, bnb.Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)

    class Converted(Exception):
        pass

    def convert(*arguments: Any) -> None:
        raise Converted

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(bnb, "_convert_weight_packed_for_cpu", convert)
        model(torch.arange(20, 30)[None])
        layers[0].support_avx512bf16_for_cpu = True
        with pytest.raises(Converted):  # which shows that this is the switch
            model(torch.arange(20, 30)[None])


# torch


class Counted(TorchDispatchMode):
    """The operations that are computed, and whether on a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[tuple[str, bool]]()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(
            (op.overloadpacket.__name__, bool(args) and isinstance(args[0], torch.nn.Parameter))
        )
        return op(*args, **(kwargs or {}))


def in_forward_and_backward(parts: Parts, op: str, parameter: bool) -> tuple[int, int]:
    """Count calls of an operation in forward and backward, under selective checkpointing and bf16."""
    model = parts.model().train()
    budget.enable_checkpointing(model, Checkpointing.selective)
    ids = torch.arange(20, 30)[None]
    with Counted() as forward, scoring.autocast(Precision.bf16, model.device):
        loss = model(input_ids=ids, labels=ids).loss
    with Counted() as backward:
        loss.backward()
    forward_count, backward_count = (
        sum(s == (op, parameter) for s in m.seen) for m in (forward, backward)
    )
    return forward_count, backward_count


@effect(
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu",
    put(budget, "COSTLY", {torch.ops.aten.mm.default}),
)
def attention_is_computed_once(parts: Parts) -> None:
    first, second = in_forward_and_backward(
        parts, "_scaled_dot_product_flash_attention_for_cpu", False
    )
    assert first > 0
    assert second == 0


@effect(
    "torch:ops.aten._to_copy",
    put(budget, "torch", SimpleNamespace(nn=SimpleNamespace(Parameter=bool))),
)
def weights_are_rounded_once(parts: Parts) -> None:
    first, second = in_forward_and_backward(parts, "_to_copy", True)
    assert first > 0
    assert second == 0


def over_runs(attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    """Attention over six tokens, and three that continue the first four: output, gradients of query, key and value."""
    layout = run_attention.RunLayout.from_lengths([6, 3], torch.device("cpu"), [0, 4])
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, 9, 8, generator=draw).requires_grad_() for heads in (4, 2, 2)]
    output = attend(SimpleNamespace(num_key_value_groups=2, is_causal=True), states, layout)
    (output * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output.detach(), *(state.grad for state in states)]


def unmasked(
    query: Any, key: Any, value: Any, dropout: float, causal: bool, attn_mask: Any, scale: Any
) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, causal, scale=scale
    )


@effect(
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu takes a mask, or causality, and says its log-sums",
    put(run_attention, "forward_kernel", unmasked),
)
def runs_attend_as_sdpa_does(parts: Parts) -> None:
    assert torch.allclose(
        over_runs(packing.attend_by_run)[0], over_runs(packing.attend_padded)[0], atol=1e-5
    )


def keys_and_values_exchanged(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    def exchanged(*arguments: Any, **options: Any) -> Any:
        query, key, value = kernel(*arguments, **options)
        return query, value, key

    kernel = run_attention.backward_kernel
    patch.setattr(run_attention, "backward_kernel", exchanged)


@effect(
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward", keys_and_values_exchanged
)
def gradients_of_runs_are_sdpas(parts: Parts) -> None:
    padded_outputs = over_runs(packing.attend_padded)
    for run_output, other in zip(
        over_runs(packing.attend_by_run)[1:], padded_outputs[1:], strict=True
    ):
        assert torch.allclose(run_output, other, atol=1e-5)


@effect(
    "torch:ops.aten._softmax_backward_data",
    put(run_attention, "softmax_backward", lambda grad, p, *_: grad * p),
)
def gradients_by_products_are_sdpas(parts: Parts) -> None:
    draw = torch.Generator().manual_seed(0)
    grad, *states = (torch.randn(1, heads, 9, 8, generator=draw) for heads in (4, 4, 2, 2))
    mask = run_attention.RunLayout.from_lengths([9], torch.device("cpu")).mask(
        0, None, torch.float32
    )
    gradients = run_attention.by_products(grad, *states, mask, 0.3)
    needing = [state.clone().requires_grad_() for state in states]
    output = torch.nn.functional.scaled_dot_product_attention(
        *needing, is_causal=True, scale=0.3, enable_gqa=True
    )
    expected = torch.autograd.grad(output, needing, grad)
    assert all(
        torch.allclose(gradient, expected_gradient, atol=1e-5)
        for gradient, expected_gradient in zip(gradients, expected, strict=True)
    )


@effect(
    "torch:ops.mkldnn._reorder_linear_weight",
    put(torch.ops.mkldnn, "_reorder_linear_weight", lambda weight, rows: weight.clone()),
)
def a_weight_is_laid_out(parts: Parts) -> None:
    assert Prepacked(torch.nn.Linear(8, 6), 4).weight.is_mkldnn


def without_bias(parts: Parts, patch: pytest.MonkeyPatch) -> None:
    multiply = torch.ops.mkldnn._linear_pointwise
    patch.setattr(
        torch.ops.mkldnn,
        "_linear_pointwise",
        lambda x, weight, _, *rest: multiply(x, weight, None, *rest),
    )


@effect("torch:ops.mkldnn._linear_pointwise", without_bias)
def a_product_with_it_is_the_layers(parts: Parts) -> None:
    linear, states = torch.nn.Linear(8, 6), torch.randn(5, 8)
    assert torch.allclose(Prepacked(linear, 4)(states), linear(states), atol=1e-5)


@effect(
    "torch:ops.mkldnn._is_mkldnn_bf16_supported",
    put(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", nothing),
)
def it_says_whether_bf16_is_multiplied(parts: Parts) -> None:
    bf16_supported, wide = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "AVX512" in torch.backends.cpu.get_cpu_capability(),
    )
    assert bf16_supported is True or (bf16_supported is False and not wide)


@effect(
    "torch.distributed:rendezvous meets in the store of TORCHELASTIC_USE_AGENT_STORE",
    put(
        sys.modules["torch.distributed.rendezvous"],
        "TCPStore",
        lambda **options: torch.distributed.HashStore(),
    ),
)
def a_worker_meets_the_others_in_the_store_of_the_agent(parts: Parts) -> None:
    host, port, our_port = agent.open_rendezvous(agent.LOCAL, 0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in agent.common_environment(host, port, 1, 1).items():
            patch.setenv(name, value)
        patch.setenv("RANK", "0")
        store, *_ = next(torch.distributed.rendezvous("env://"))
    store.set("met", "here")
    assert our_port.check(["met"])


# Hydra, OmegaConf, yaml


@contextlib.contextmanager
def config_loader() -> Iterator[ConfigLoaderImpl]:
    GlobalHydra.instance().clear()
    recipes.register([])  # whichever an earlier test registered
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


class Ending(Callback):
    """Ends the process, or makes a mistake."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        sys.exit("a sweep that cannot work")

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        raise ValueError("a mistake")


def careless(self: Callbacks, function_name: str, reverse: bool = False, **options: Any) -> None:
    for callback in self.callbacks:
        with contextlib.suppress(BaseException):
            getattr(callback, function_name)(**options)


@effect("hydra._internal.callbacks:Callbacks", put(Callbacks, "_notify", careless))
def a_callback_may_end_the_sweep(parts: Parts) -> None:
    config = OmegaConf.create(
        {"hydra": {"callbacks": {"ending": {"_target_": f"{__name__}.Ending"}}}}
    )
    callbacks = Callbacks(config)
    with pytest.raises(SystemExit):
        callbacks.on_multirun_start(config)
    with pytest.warns(UserWarning, match="a mistake"):
        callbacks.on_multirun_end(config)


@effect(
    "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments",
    put(BasicSweeper, "split_arguments", staticmethod(lambda overrides, max_batch_size: [[]])),
)
def a_grid_is_split_into_its_jobs(parts: Parts) -> None:
    with config_loader() as loader:
        overrides = OverridesParser.create(loader).parse_overrides(["dpo.beta=0.1,0.5", "seed=1"])
    assert BasicSweeper.split_arguments(overrides, max_batch_size=None) == [
        [["dpo.beta=0.1", "seed=1"], ["dpo.beta=0.5", "seed=1"]]
    ]


@effect(
    "hydra.core.global_hydra:GlobalHydra.config_loader",
    put(ConfigLoaderImpl, "load_sweep_config", lambda self, m, o: m),
)
def the_loader_composes_a_job(parts: Parts) -> None:
    with config_loader() as loader:
        master = loader.load_configuration("config", ["seed=1"], run_mode=RunMode.MULTIRUN)
        job = loader.load_sweep_config(master, ["seed=1", "dpo.beta=0.5"])
    assert job.dpo.beta == 0.5 != master.dpo.beta


@effect(
    "hydra.core.utils:JobReturn takes another status and return_value from a callback",
    put(JobReturn, "return_value", property(lambda self: 0)),
)
def a_failed_job_can_be_made_one_that_returns_nothing(parts: Parts) -> None:
    job = JobReturn(status=JobStatus.FAILED)
    job.return_value = ValueError("a mistake")
    with pytest.raises(ValueError, match="a mistake"):
        _ = job.return_value
    job.status, job.return_value = JobStatus.COMPLETED, None
    assert job.return_value is None


def refusal_of(*overrides: str) -> str:
    """The line that our own explanation makes of a configuration that cannot be composed."""
    with pytest.raises(Exception) as raised:
        composed(*overrides)
    return str(explain.explain(raised.value))


def silent(self):
    return "something went wrong"


@effect(
    "hydra.errors:ConfigCompositionException says which override or file was merged",
    put(ConfigCompositionException, "__str__", silent),
)
def a_wrong_value_is_told_with_its_place(parts: Parts) -> None:
    assert refusal_of("dpo.beta=abc").startswith("dpo.beta=abc: ")
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / "wrong.yaml"
        recipe.write_text("# @package _global_\ndpo: {bata: 1}\n")
        assert refusal_of(f"recipe={recipe}").startswith(f"{recipe}: dpo.bata ")
    assert refusal_of("recipe=tini").endswith("Did you mean 'tiny'?")


# trackers


@effect(
    "huggingface_hub.constants:HF_HUB_OFFLINE is read at every request",
    put(huggingface_hub.constants, "is_offline_mode", lambda: False),
)
def the_hub_is_not_asked_while_a_local_run_starts(parts: Parts) -> None:
    from stages.tracking.trackio import asking_nobody

    nobody = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    with (
        mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", False),
        asking_nobody(),
        pytest.raises(OfflineModeIsEnabled),
    ):
        nobody.whoami(token="hf_nobody")


@effect(
    "wandb:Artifact.add_reference hands out entries whose digest can be set",
    put(wandb.Artifact, "add_reference", lambda self, *arguments, **options: []),
)
def the_content_decides_the_version(parts: Parts) -> None:
    folder = parts.new_folder()
    (folder / "file").write_text("content")
    manifest = dict.fromkeys(
        ("digest", "seed", "device", "wall_seconds", "peak_memory", "metrics"), 0
    )
    manifest |= {"stage": "sft", "fingerprint": "0123456789ab"}
    artifact = {
        sha: tracking.artifact(
            folder, {**manifest, "files": {"file": {"sha256": sha}}}, upload=False
        ).digest
        for sha in ("a" * 64, "b" * 64)
    }
    assert len({*artifact.values()}) == 2


@effect(
    "wandb:Settings.sync_dir ends with the id of the run and begins with offline- or run-",
    put(wandb.Settings, "sync_dir", property(lambda self: "/somewhere/else")),
)
def a_runs_folder_says_whose_it_is(parts: Parts) -> None:
    from stages.commands import sync

    for mode, begins in (("offline", "offline-run-"), ("online", "run-")):
        folder = Path(wandb.Settings(mode=mode, run_id="sft-0123456789ab-cdef").sync_dir)
        assert folder.name.startswith(begins)
        assert sync.run_id(folder) == "sft-0123456789ab-cdef"


@effect(
    "wandb.cli.beta_sync:_is_synced looks for `*.wandb.synced`",
    put(wandb.cli.beta_sync, "_is_synced", lambda path: False),
)
def what_is_sent_is_marked(parts: Parts) -> None:
    from stages.commands import sync

    run = parts.new_folder() / "offline-run-20260101_000000-sft-0123456789ab-cdef"
    run.mkdir()
    file = run / "run-sft-0123456789ab-cdef.wandb"
    file.touch()
    assert not wandb.cli.beta_sync._is_synced(file) and not sync.is_sent(run)
    file.with_suffix(".wandb.synced").touch()
    assert wandb.cli.beta_sync._is_synced(file) and sync.is_sent(run)
