"""Every private or undocumented place of a library that this code leans on: where, for what, and what breaks.

`python -m tests.upstream.seams` writes the table into docs/reference/private-apis.md.
"""

import re
from dataclasses import dataclass

from stages.config.installation import ROOT

PAGE = ROOT / "docs" / "reference" / "private-apis.md"
TABLE = re.compile(r"(?<=<!-- seams -->\n).*(?=<!-- end of seams -->)", re.DOTALL)
ATTENTION_OPS = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)


@dataclass(frozen=True)
class Seam:
    """One such place.

    place: MODULE:NAME or MODULE:CLASS.NAME; CLASS().NAME where only an instance has it. Behind a space, how it
        behaves, where the name alone says too little.
    files: ours, under stages/.
    use: what we do with it.
    breaks: what happens without it.
    takes: its parameters, in order, as far as ours or TRL's calls name or count them.
    """

    place: str
    files: tuple[str, ...]
    use: str
    breaks: str
    takes: str = ""

    @property
    def module(self) -> str:
        return self.place.partition(":")[0]

    @property
    def path(self) -> list[str]:
        """`DPOTrainer()`, `_metrics`."""
        return self.place.partition(" ")[0].partition(":")[2].split(".")

    @property
    def name(self) -> str:
        return self.path[-1]


SEAMS = [
    # TRL
    Seam(
        "trl.trainer.utils:FusedCausalLMOutput",
        ("objectives/dpo.py", "objectives/kto.py", "objectives/sft.py"),
        "read and made: what a row's output would be, cut from that of a forward of many rows",
        "evaluations during training end in an error",
    ),
    Seam(
        "trl:DPOTrainer._prepare_dataset",
        ("objectives/dpo.py",),
        "overridden: the rows are token ids already, those that were drawn",
        "TRL tokenises text, of which there is none",
        takes="self, dataset, processing_class, args, dataset_name",
    ),
    Seam(
        "trl:DPOTrainer._precompute_ref_logps",
        ("objectives/dpo.py",),
        "overridden: the reference's log-probs come from the store",
        "TRL computes them itself, with the policy as reference",
        takes="self, dataset, name, batch_size",
    ),
    Seam(
        "trl.trainer.dpo_trainer:create_model_from_path",
        ("objectives/dpo.py",),
        "replaced while TRL's constructor runs: the store has the reference's log-probs",
        "launch=fsdp loads the model twice in every process",
    ),
    Seam(
        "trl.trainer.dpo_trainer:hash_module",
        ("objectives/dpo.py",),
        "replaced while TRL's constructor runs: the hash would name a cache that is never read",
        "every start copies and hashes all weights",
        takes="module",
    ),
    Seam(
        "trl:DPOTrainer()._metrics",
        ("training/micro_batches.py", "objectives/first_step.py"),
        "read and replaced: the metrics of a step's micro-batches become the step's",
        "curves hold means of means",
    ),
    Seam(
        "trl:DPOTrainer()._total_train_tokens",
        ("training/micro_batches.py",),
        "read and set back: a step that ran out of memory is not counted twice",
        "num_tokens counts too much",
    ),
    Seam(
        "trl:DPOTrainer().loss_weights",
        ("objectives/dpo.py",),
        "set for a micro-batch: its `sft` term counts by its share of tokens",
        "the `sft` term depends on the micro-batch",
    ),
    Seam(
        "trl:DPOTrainer().loss_types",
        ("objectives/dpo.py",),
        "read: whether there is an `sft` term",
        "an AttributeError at the first step",
    ),
    Seam(
        "trl:DPOTrainer names the adapter that it copies `ref`",
        ("objectives/dpo.py",),
        "deleted: the reference is in the store",
        "a second adapter is kept in memory and published",
    ),
    Seam(
        "trl.trainer.dpo_trainer:DataCollatorForPreference stacks chosen over rejected",
        ("objectives/dpo.py", "models/packing.py"),
        "the halves of a batch are told apart by their order",
        "metrics and the `sft` term are of the wrong half",
    ),
    Seam(
        "trl:DPOTrainer.log adds its metrics under their names",
        ("objectives/dpo.py",),
        "each metric of a step is weighed by what it is a mean of, told by its name",
        "metrics are weighed by pairs where they are means over tokens; figures go missing in manifests and cards",
    ),
    Seam(
        "trl.trainer:add_fused_lm_head",
        ("models/scoring.py", "objectives/grpo.py"),
        "called: the reference is scored by the head that trains",
        "policy and reference differ by their arithmetic",
        takes="model, temperature, cast_lm_head_to_fp32, outputs",
    ),
    Seam(
        "trl.trainer:add_fused_lm_head looks up model.base_model at every call",
        ("models/packing.py",),
        "its forward is replaced by one without padding, before or after the head is added",
        "pairs are padded, and every prompt is read twice",
    ),
    Seam(
        "trl.trainer.utils:_ChunkedLogProbFunction",
        ("models/lm_head.py",),
        "replaced: on a CPU, the head is ours",
        "training on a CPU is slower, and its figures are those of another arithmetic",
    ),
    Seam(
        "trl.trainer.utils:_use_triton",
        ("models/lm_head.py",),
        "replaced: only the tokens that count are scored, on a CPU too",
        "the head scores prompts and padding",
        takes="device",
    ),
    Seam(
        "trl.kernels:ChunkedLogProbFunction.forward",
        ("models/lm_head.py",),
        "ours takes the same arguments and returns the same; on other devices it is called",
        "log-probs are of something else",
        takes="ctx, hidden, weight, bias, targets, temperature, chunk_size, final_logit_softcapping, logit_scale, "
        "outputs",
    ),
    # transformers
    Seam(
        "transformers:Trainer().current_gradient_accumulation_steps",
        ("training/micro_batches.py",),
        "set for a micro-batch: its loss counts by its share of the step's rows",
        "a step in three micro-batches takes three times the gradient",
    ),
    Seam(
        "transformers:Trainer.get_batch_samples",
        ("training/micro_batches.py", "objectives/dpo.py"),
        "overridden: the tokens of a step are counted before it is divided",
        "SFT depends on the micro-batch",
        takes="self, epoch_iterator, num_batches, device",
    ),
    Seam(
        "transformers:Trainer.get_train_dataloader takes the collator from self.data_collator",
        ("training/micro_batches.py",),
        "another stands there while it runs: steps come as rows",
        "an error at the first step",
    ),
    Seam(
        "transformers:Trainer._get_train_sampler",
        ("training/trainer.py",),
        "overridden: rows that fill no batch are left out in turn",
        "an epoch ends with a smaller batch, which several processes fill with rows they have had",
        takes="self, train_dataset",
    ),
    Seam(
        "transformers:Trainer().lr_scheduler",
        ("training/trainer.py",),
        "replaced when it is made: a short training's warm-up has no step at rate 0",
        "a training of four steps loses its first",
    ),
    Seam(
        "transformers:Trainer.evaluation_loop calls prediction_step, and evaluate logs what it measured",
        ("training/trainer.py",),
        "the loss of every row is kept in the trainer's log, and so in its checkpoints",
        "nothing is compared with what was before the first step, and a wrecked model is published",
    ),
    Seam(
        "transformers:Trainer.log tells loss, grad_norm, eval_loss, train_runtime",
        ("training/callbacks.py",),
        "read by name: a training that diverges is stopped, the best step is kept",
        "a training that diverges runs on",
    ),
    Seam(
        "transformers.trainer_utils:PREFIX_CHECKPOINT_DIR is `checkpoint`",
        ("training/saving.py",),
        "folders of checkpoints are found by their name",
        "no resume: training begins again",
    ),
    Seam(
        "transformers:TrainingArguments.save_only_model",
        ("training/saving.py",),
        "set before the last step's checkpoint",
        "the last checkpoint of a training is three times as large",
    ),
    Seam(
        "transformers:PreTrainedConfig._attn_implementation",
        ("models/packing.py",),
        "read: which attention a model's layers call",
        "packing is refused, or its layout put on layers that do not take it",
    ),
    Seam(
        "transformers:PreTrainedModel._is_stateful",
        ("models/packing.py",),
        "read: whether a model remembers more than keys and values",
        "a recurrent model is sampled from with the wrong cache, and packed examples see each other",
    ),
    Seam(
        "transformers:LlamaModel hands keyword arguments on to its attention",
        ("models/packing.py",),
        "our layout of a packed row goes that way",
        "nothing is packed: training and scoring are slower",
    ),
    Seam(
        "transformers:MistralModel tells its attention the sliding_window",
        ("models/packing.py",),
        "our attention reads it there",
        "layers with a window look further back than they were trained to",
    ),
    Seam(
        "transformers:Gemma3TextModel takes a mask for each kind of layer",
        ("samplers/hf.py",),
        "given: full and sliding attention see different pasts",
        "an error in sampling, or a window that is none",
    ),
    Seam(
        "transformers:Cache.update",
        ("samplers/slots.py",),
        "our cache stands in for one: layers call it with these arguments, and attend to what it returns",
        "an error in sampling, or samples of another model",
        takes="self, key_states, value_states, layer_idx",
    ),
    Seam(
        "transformers.generation.streamers:BaseStreamer is given the prompt, then token by token",
        ("samplers/generate.py", "commands/chat.py"),
        "subclassed: chat prints an answer as it is drawn",
        "chat prints the prompt, or loses the first token",
    ),
    Seam(
        "transformers:PreTrainedModel().all_tied_weights_keys",
        ("training/saving.py",),
        "read: weights that are another's are not saved again",
        "under FSDP and ZeRO-3 a tied head is saved twice, or saving fails",
    ),
    Seam(
        "transformers.quantizers.base:HfQuantizer.remove_quantization_config",
        ("base.py",),
        "called on what loaded a GGUF file: its weights are plain by then",
        "a base from a GGUF file cannot be saved",
        takes="self, model",
    ),
    Seam(
        "transformers.integrations.gguf.gguf_tokenizer_mapping:GGUF_PRE_TOKENIZER_SPLITS",
        ("models/gguf_file.py",),
        "read: llama.cpp's name for how a tokenizer splits text",
        "`stage=export` refuses Llama and Qwen tokenizers",
    ),
    Seam(
        "transformers.integrations.gguf.reader:read_gguf_metadata",
        ("base.py",),
        "read: a GGUF file's keys and tensor names, without parsing it a third time",
        "a GGUF file with scaled rotary positions is taken without them",
        takes="gguf_path, string_arrays",
    ),
    # accelerate
    *(
        Seam(
            f"accelerate:Accelerator.{name}",
            ("training/micro_batches.py", "training/trainer.py"),
            "covered by an attribute of the object: within a step or an evaluated row, each process keeps its metrics",
            "with several processes, num_tokens counts every token several times, and metrics are weighed wrongly",
        )
        for name in ("gather", "gather_for_metrics")
    ),
    Seam(
        "accelerate.utils.fsdp_utils:fsdp2_prepare_model imports fully_shard at every call",
        ("training/sharding.py",),
        "torch's is replaced while accelerate shards: norms, embeddings and head are gathered in their own dtype",
        "launch=fsdp with precision=bf16 trains by another arithmetic than one process",
        takes="accelerator, model",
    ),
    Seam(
        "transformers:PreTrainedModel._no_split_modules",
        ("training/sharding.py",),
        "read: the classes of layers, which accelerate shards one by one",
        "launch=fsdp with precision=bf16 gathers all weights in fp32",
    ),
    Seam(
        "transformers:Trainer().args.fsdp_plugin_args",
        ("training/arguments.py",),
        "set: the dtypes in which FSDP2 gathers weights and reduces gradients",
        "launch=fsdp with precision=bf16 trains by another arithmetic than one process",
    ),
    Seam(
        "accelerate.utils.memory:should_reduce_batch_size",
        ("training/micro_batches.py",),
        "called: whether an error is a lack of memory",
        "out of memory, training stops where it would have gone on with less at once",
        takes="exception",
    ),
    # peft, bitsandbytes
    Seam(
        "peft:PeftModel.save_pretrained warns `Could not find a config file`",
        ("hardware/process.py",),
        "silenced by its text",
        "a warning at every checkpoint of an adapter",
    ),
    Seam(
        "bitsandbytes.nn:Linear4bit().support_avx512bf16_for_cpu",
        ("models/loading.py",),
        "set to False: score in the arithmetic that trains",
        "on CPUs with AVX512-BF16, policy and reference of QLoRA differ and DPO refuses to begin",
    ),
    # torch
    *(
        Seam(
            f"torch:ops.aten.{name}",
            ("training/budget.py",),
            "its outputs are kept for the backward",
            "selective checkpointing computes attention twice",
        )
        for name in ATTENTION_OPS
    ),
    Seam(
        "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu takes a mask, or causality, and says its log-sums",
        ("models/run_attention.py",),
        "called for every run of a packed row",
        "on a CPU, training and scoring without padding fail, or attend to something else",
    ),
    Seam(
        "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
        ("models/run_attention.py",),
        "called for every run of a packed row, and what comes back is added up",
        "on a CPU, training without padding fails, or its gradients are wrong",
    ),
    Seam(
        "torch:ops.aten._softmax_backward_data",
        ("models/run_attention.py",),
        "called for every run of a packed row, in bf16",
        "on a CPU, training without padding in bf16 fails, or its gradients are wrong",
    ),
    Seam(
        "torch:ops.mkldnn._reorder_linear_weight",
        ("samplers/hf.py",),
        "called once for every weight: it is laid out as products want it",
        "on a CPU, nothing can be sampled",
    ),
    Seam(
        "torch:ops.mkldnn._linear_pointwise",
        ("samplers/hf.py",),
        "called: a linear layer whose weight is laid out already",
        "on a CPU, nothing can be sampled, or samples are of another model",
    ),
    Seam(
        "torch:ops.mkldnn._is_mkldnn_bf16_supported",
        ("samplers/hf.py",),
        "called: whether this CPU multiplies bf16 itself",
        "on a CPU, nothing can be sampled, or bf16 is multiplied more slowly",
    ),
    Seam(
        "torch:ops.aten._grouped_mm",
        ("training/budget.py",),
        "its outputs are kept for the backward",
        "selective checkpointing computes a mixture's experts twice",
    ),
    Seam(
        "torch:ops.aten._to_copy",
        ("training/budget.py",),
        "of a weight, its output is kept for the backward",
        "selective checkpointing rounds every weight twice",
    ),
    Seam(
        "torch.distributed:rendezvous meets in the store of TORCHELASTIC_USE_AGENT_STORE",
        ("launch/agent.py",),
        "the agent has the store of all workers, and it listens on one address alone",
        "launch=ddp, fsdp and zero3 do not start: a worker wants the port that the agent has",
    ),
    # Hydra, OmegaConf, yaml
    Seam(
        "hydra._internal.callbacks:Callbacks",
        ("cli/sweep.py",),
        "made for our launches; a callback's SystemExit ends the sweep, another exception only warns",
        "what jobs share is not built first, or a sweep that cannot work runs on",
        takes="config",
    ),
    Seam(
        "hydra._internal.core_plugins.basic_sweeper:BasicSweeper.split_arguments",
        ("cli/sweep.py",),
        "called: the jobs of a grid, before it starts",
        "what jobs share is not built first",
        takes="overrides, max_batch_size",
    ),
    Seam(
        "hydra.core.global_hydra:GlobalHydra.config_loader",
        ("cli/sweep.py",),
        "called: it composes the configuration of a job",
        "what jobs share is not built first",
        takes="self",
    ),
    Seam(
        "hydra.core.utils:JobReturn takes another status and return_value from a callback",
        ("cli/sweep.py",),
        "a failed job is told in one line and returns nothing",
        "a failed job stops the sweep",
    ),
    Seam(
        "hydra.errors:ConfigCompositionException says which override or file was merged",
        ("cli/explain.py",),
        "read from its text",
        "an error in a file is told without the file",
    ),
    # trackers
    Seam(
        "huggingface_hub.constants:HF_HUB_OFFLINE is read at every request",
        ("tracking/trackio.py",),
        "set while a local run starts",
        "trackio asks the hub whose token it is",
    ),
    Seam(
        "wandb:Artifact.add_reference hands out entries whose digest can be set",
        ("tracking/wandb.py",),
        "set to the SHA-256 that the store has",
        "another content is the same version to W&B",
        takes="self, uri, name, checksum",
    ),
    Seam(
        "wandb:Settings().x_disable_meta",
        ("tracking/wandb.py",),
        "set: W&B is not told of commands, paths and hardware",
        "an error where a run is tracked, as W&B knows no such setting",
    ),
    Seam(
        "wandb:Settings.sync_dir ends with the id of the run and begins with offline- or run-",
        ("commands/sync.py",),
        "read from folders' names: which run is whose",
        "`stage=sync` sends nothing, or sends everything again",
    ),
    Seam(
        "wandb.cli.beta_sync:_is_synced looks for `*.wandb.synced`",
        ("commands/sync.py",),
        "looked for: runs that were sent",
        "`stage=sync` sends everything again",
        takes="path",
    ),
]


def table() -> str:
    """The table as Markdown, by library; places with the same use share a row. What breaks stands here alone."""
    places_by_row = dict[tuple[str, str], list[str]]()
    for seam in SEAMS:
        where, _, how = seam.place.partition(" ")
        files = ", ".join(f"`{file}`" for file in seam.files)
        place = f"`{where.replace(':', '.')}` {how}".rstrip()
        places_by_row.setdefault((files, seam.use), []).append(place)
    lines = ["| place | ours | what for |", "| --- | --- | --- |"]
    lines += [
        f"| {' | '.join([', '.join(places), *row])} |" for row, places in places_by_row.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(
        TABLE.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8"
    )
