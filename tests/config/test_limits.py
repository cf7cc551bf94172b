"""Tests of limits: a value outside a key's limit is refused in one line with the key, before anything is built."""

import math
import re
import typing
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from stages.cli import main, spelling
from stages.cli.settings import all_settings, settings_of
from stages.config import limits
from stages.config.blocks.data import Source
from stages.config.blocks.objective import LoRA
from stages.config.blocks.training import OBJECTIVES
from stages.config.errors import UserError
from stages.config.extras import EXTRAS
from stages.config.schema import GROUPS, OPTIONS, Config
from stages.preflight import capacity, constraints
from tests.helpers import TINY, refused, settings

NUMBERS = {int, float}
# Words that `constraints.validate_config` or the first stage checks: names of files in the packages, or of functions there.
IN_ROOMS = [
    "stage",
    "answer.sampler",
    "data.tasks.families",
]
IN_ROOMS += [
    "label.format",
    "data.sources.format",
    "data.sources.task",
    *(f"{block}.{key}" for block in ("data.file", "reward.source") for key in ("format", "task")),
]
# Names that only the file, the hub, the model or the service can know. They are read before anything is trained.
NAMES = [
    "outputs",
    "model.path",
    "model.adapter",
    "model.adapter_base",
    *(("examine.model", "examine.before") if "examine" in EXTRAS else ()),
    "model.revision",
    "label.path",
    "label.revision",
    "label.hub_split",
    "sft.template.path",
    "label.subset",
    "data.path",
    "data.sources.path",
    "data.sources.revision",
    "data.sources.subset",
    "data.sources.hub_split",
    "data.own.file",
    "data.own.name",
    "sample.own.file",
    "sample.own.name",
    "label.own.file",
    "label.own.name",
    "dpo.own.file",
    "dpo.own.name",
    "grpo.own.file",
    "grpo.own.name",
    "tracker.project",
    "sample.runtime.python",
    "answer.runtime.python",
    "eval.by",
    "grpo.runtime.python",
    "online_dpo.runtime.python",
    "store.remote",
    "tracker.entity",
    "tracker.group",
    "launch.rendezvous",
    "gate.against",
    "data.file.path",
    "reward.source.path",
    "data.file.revision",
    "reward.source.revision",
    "data.file.subset",
    "reward.source.subset",
    "data.file.hub_split",
    "reward.source.hub_split",
    "sample.endpoint.base_url",
    "sample.endpoint.model",
    "sample.endpoint.api_key_env",
    "sample.file",
    "eval.judged.against",
    "eval.judged.own.file",
    "eval.judged.own.name",
    "data.sources.licence",
    "data.file.licence",
    "reward.source.licence",
    "label.licence",
    "data.form.system_prompts",
]
OF_EXTRAS = (
    "launch.address",
    "compare.sweep",
    "chat.runtime.python",
    "export.repo",
    "convert.file",
    "benchmark.tasks",
    "benchmark.tasks_dir",
    "benchmark.runtime.python",
)
NAMES += [key for key in OF_EXTRAS if key in all_settings()]
OF_LABELERS = ["known", "rubric", "path", "revision"]
OF_PEOPLE = ["instructions", "reasons", "answered", "runtime.host"]
OF_LABELERS += ["judge.known", "judge.rubric"]
OF_LABELERS += ["reward_model.known", "reward_model.path", "reward_model.revision"]
if "human" in EXTRAS:
    OF_LABELERS += [*OF_PEOPLE, *(f"human.{key}" for key in OF_PEOPLE)]
NAMES += [f"{block}.{key}" for block in ("label", "eval.judged") for key in OF_LABELERS]
for objective in OBJECTIVES:
    NAMES += [f"{objective}.trainer.optim", f"{objective}.lora.target_modules"]
    NAMES += [f"{objective}.learning_rate", f"{objective}.runtime.micro_batch"]  # a number or auto


def every_key() -> dict[str, tuple[Any, Any]]:
    """Return the types without None, and the field metadata, of every key of all blocks and of one source."""
    by_key = all_settings() | {each.key: each for each in settings_of(Source, "data.sources.")}
    return {key: (kinds(each.kind), each.field.metadata) for key, each in by_key.items()}


def kinds(hint: Any) -> set[Any]:
    """Return the types inside a type: int for `int | None` and `list[int]`, dict for `dict[str, Any]`."""
    if typing.get_origin(hint) is dict:
        return {dict}
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    return set().union(*map(kinds, inner)) if inner else {hint}


def choose_option(cfg: Any, key: str) -> None:
    """Choose an option of the key's group whose class has this key."""
    for group, options in OPTIONS.items():
        block = next((b for b, of in GROUPS.items() if of == group), group.replace("/", "."))
        if not key.startswith(f"{block}."):
            continue
        name = re.sub(r"^sources\..*", "sources", key.removeprefix(f"{block}."))
        having = [k for k in options.values() if name in {each.key for each in settings_of(k)}]
        if not having:  # a key of an option of a group inside
            continue
        kind = having[0]
        chosen = attrgetter(block)(cfg)
        if kind is (OmegaConf.get_type(chosen) if isinstance(cfg, DictConfig) else type(chosen)):
            continue
        holder, _, place = block.rpartition(".")
        chosen = OmegaConf.structured(kind) if isinstance(cfg, DictConfig) else kind()
        setattr(attrgetter(holder)(cfg) if holder else cfg, place, chosen)


def with_value(key: str, value: Any) -> Config:
    """Return the tiny configuration with one source and with this value, which no type check has seen."""
    cfg = settings(*TINY)
    choose_option(cfg, key)
    cfg.data.sources = [Source("rows.jsonl")]
    block: Any = cfg
    *blocks, name = key.split(".")
    for part in blocks:
        block = getattr(block, part)
        block = block[0] if isinstance(block, list) else block
    setattr(block, name, [value] if spelling.is_list(key) else value)
    return cfg


EVERY = every_key()
TEXTS = {
    key: help_text
    for key, (hint, help_text) in EVERY.items()
    if str in hint and limits.ONLY_PIPELINE_SETS not in help_text
}


def refusal(key: str, value: Any) -> str:
    """Return how a value of a key is refused, or an empty string."""
    try:
        limits.validate_block(with_value(key, value))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.extended
def test_every_number_has_bounds_of_sense() -> None:
    let_through = list[str]()
    for key, (hint, metadata) in EVERY.items():
        if not hint & NUMBERS:
            continue
        if limits.ONLY_PIPELINE_SETS in metadata:
            if not refusal(key, 7).startswith(f"{key}=7: "):
                let_through.append(f"{key}=7")
            continue
        limit = metadata.get(limits.LIMIT, limits.AMOUNT)
        named = re.compile(rf"{key.replace('sources', 'sources.0.')}=.*: the value must be ")
        values = [limit.low if limit.open else limit.low - 1, -(10**30), math.nan, math.inf]
        if not math.isinf(limit.high):
            values.append(limit.high if limit.below else limit.high + 1)
        for value in values:
            if not named.match(refusal(key, value)):
                let_through.append(f"{key}={value}")
    assert let_through == []


def test_every_text_has_words_or_is_free_on_purpose() -> None:
    texts = {key for key, metadata in TEXTS.items() if limits.ONE_OF not in metadata}
    assert texts == {*IN_ROOMS, *NAMES}


def test_no_text_is_empty_and_no_word_unknown() -> None:
    let_through = []
    for key, metadata in TEXTS.items():
        named = key.replace("sources", "sources[0]")
        if not refusal(key, " ").startswith(f"{named}= : the value is empty."):
            let_through.append(key)
        if limits.ONE_OF in metadata and not refusal(key, "bogus").startswith(
            f"{named}=bogus: bogus is not a known value."
        ):
            let_through.append(f"{key}=bogus")
    assert let_through == []


ENDPOINT = "sample=openai sample.endpoint.base_url=http://127.0.0.1:1 sample.endpoint.model=writer"
# What was typed, and what the refusal has. Nothing is built first.
REFUSED = [
    ("sample.max_new_tokens=???", "sample.max_new_tokens"),
    ("seed=-1", "seed=-1: the value must be"),
    ("seeds=[-3]", "seeds=-3: the value must be"),
    ("sft.epochs=inf", "sft.epochs=inf: the value must be"),
    ("eval.likelihood_prompts=2e9", "eval.likelihood_prompts=2e9: "),
    ("model.random_init.heads=3", "model.random_init.heads=3: "),
    ("~dpo.beta", "~dpo.beta: "),
    ("dpo=5", "Known: default."),
    ("label=reward_model label.path=x pairs.min_score=1", "pairs.min_score=1: scores"),
    ("data.tasks=null", "data.tasks=null: this value is not accepted"),
    ("pairs.margin_quantiles=[0.5,0.2]", "pairs.margin_quantiles=[0.5, 0.2]: "),
    ("dpo.adapter=lora dpo.lora.target_modules=[q_prj]", "dpo.lora.target_modules=['q_prj']: "),
    ("sft.adapter=lora sft.lora.target_modules=[]", "sft.lora.target_modules=[]: "),
    ("dpo.adapter=lora dpo.lora.target_modules=[q_proj,lm_head]", "output layer cannot be adapted"),
    ("dpo.first_difference=true dpo.loss_type=[ipo]", "Set dpo.first_difference=false."),
    (
        "sft.packing=true sft.trainer.neftune_noise_alpha=5 sft.runtime.micro_batch=1",
        "sft.trainer.",
    ),
    ("tracker=wandb tracker.project=team/project", "tracker.project=team/project"),
    ("tracker=wandb tracker.group=../other", "tracker.group=../other"),
    ("dpo.trainer.use_cache=true", "only the dpo stage sets"),
    ("dpo.trainer.lr_scheduler_kwargs={num_cycle:1}", "keyword argument 'num_cycle'"),
    ("dpo.trainer.lr_scheduler_type=cosine_with_min_lr", "One of min_lr or min_lr_rate"),
    ("dpo.trainer.lr_scheduler_type=cosin", "Did you mean 'cosine'?"),
    ("dpo.trainer.ddp_static_graph=true", "go into dpo.trainer.extra"),
    ("dpo.trainer.extra.ddp_static_grap=true", "Did you mean 'ddp_static_graph'?"),
    ("dpo.trainer.extra.ddp_static_graph=yes", "dpo.trainer.extra.ddp_static_graph=yes: "),
    ("dpo.trainer.extra.seed=1", "Set dpo.seed instead"),
    ("dpo.trainer.extra.weight_decay=1", "Set dpo.trainer.weight_decay instead"),
    ("dpo.trainer.extra.gradient_checkpointing=true", "Set dpo.runtime.gradient_checkpointing"),
    ("precision=bf16 dpo.precision=fp32", "Set reference.precision=fp32."),
    ("align=kto kto.desirable_weight=0 kto.undesirable_weight=0", "kto.desirable_weight=0: "),
    ("align=grpo grpo.max_new_tokens=2000", "grpo.max_length=1024 "),
    ("stage=reward align=grpo", "reward.source.path=FILE"),
    (
        "stage=pairs data=file data.sources=[{path:README.md,splits:{preference:1}}]",
        "with checks. Set",
    ),
    ("dpo.trainer.adam_beta1=2", "dpo.trainer.adam_beta1=2: the value must be"),
    (
        "dpo.trainer.weight_decay=[1,2]",
        "dpo.trainer.weight_decay=[1,2]: this value is not accepted",
    ),
    ("dpo.trainer.weight_decay=-1", "dpo.trainer.weight_decay=-1: the value must be"),
    ("dpo.trainer.optim=adamw", "please select one of ['adamw_torch'"),
    (
        "sft.trainer.loss_type=dft sft.trainer.label_smoothing_factor=0.1",
        "the loss dft does not read this",
    ),
    (
        "dpo.trainer.f_divergence_type=forward_kl dpo.loss_type=[apo_zero]",
        "f_divergence_type=forward_kl: the loss apo_zero does not support it",
    ),
    ("dpo.trainer.label_smoothing=0.1", "dpo.trainer.label_smoothing: the loss sigmoid"),
    ("data.tasks.preference=0", "data.tasks.preference: sample needs 1 prompts"),
    ("sample.candidates_per_prompt=1", "sample.candidates_per_prompt=1: a pair needs"),
    ("sample.temperatures=[0]", "sample.temperatures=[0.0]: "),
    ("sample.round=1", "sample.round=1: only the pipeline sets"),
    ("rounds=3 sample.prompts_per_round=17", "needs 51 prompts, and there are at most 48"),
    (
        "sample.prompts_per_round=2 sample.candidates_per_prompt=2 dpo.batch_size=8",
        "dpo.batch_size=8: 2 prompts",
    ),
    ("sample=openai", "sample.endpoint.base_url is not an address"),
    (f"{ENDPOINT} sample.endpoint.api_key_env=sk-1234", "sample.endpoint.api_key_env holds a key"),
    (f"{ENDPOINT} sample.endpoint.budget.money=2", "budget.money=2: the price of"),
    (f"{ENDPOINT} sample.endpoint.price.input=-1", "sample.endpoint.price.input=-1.0: "),
    ("label=judge", "label.endpoints: no judge"),
    ("label=judge label.endpoints=[{bogus:x}]", "bogus is not a setting"),
    ("label.known=README.md", "label.audit=200"),
    ("prices={writer:{input:-1,output:1}}", "prices.writer.input=-1.0: the value must be"),
    ("dpo.batch_size=100000", "at most 48 pairs"),
    ("dpo.loss_type=[hinge] +dpo.trainer.use_weighting=true", "hinge and sft cannot weight"),
    ("dpo.loss_weights=[0.0]", "dpo.loss_weights=null"),
    ("data.sources=[{path:README.md,splits:{train:1}}]", "data.sources[0].splits=train: "),
    ("data.sources=[{path:README.md,splits:{sft:0}}]", "data.sources[0].splits="),
    ("data.sources=[{path:README.md,rows:-1}]", "data.sources[0].rows=-1: the value must be"),
    ("outside=[{path:README.md,check:label,splits:{sft:1}}]", "outside[0].splits="),
    ("answer.max_new_tokens=3000", "answer.max_new_tokens=3000: "),
    ("launch.nodes=2 launch.rendezvous=node0", "launch.rendezvous=node0 is not HOST:PORT"),
    ("launch=fsdp launch.processes=1", "launch.sharding=fsdp "),
    ("outputs=", "outputs= is empty. Name a folder"),
    ("dpo.beta=${dpo.bata}", "dpo.beta: Interpolation key 'dpo.bata'"),
    ("label.labels={no:schön}", "put texts in quotes"),
    ("data.sources=[{path:x}", "data.sources=[{path:x}: cannot be read"),
    ("dpo.beta", "dpo.beta: an argument must be KEY=VALUE."),
    ("hydra.sweeper.params={dpo.beta:1}", "only recipes may set hydra.sweeper.params"),
    ("data.sources=README.md", "Accepted: list of Source, as data.sources="),
    ("dpo.loss_type=[simp]", "Did you mean 'simpo'?"),
    ("seeds=2", "as seeds=["),
    ("dpo.lora=5", "its keys, as dpo.lora.rank="),
    ("sft.lr=1", "Did you mean 'learning_rate'?"),
    ("sft.beta=1", "Did you mean dpo.beta or kto.beta or grpo.beta or online_dpo.beta?"),
    ("sft.weight_decay=1", "Did you mean sft.trainer.weight_decay?"),
    ("sft.template.resize=-7", "Type sft.template.resize=true"),
    ("dpo.trainer.use_liger_kernel='2'", "Type dpo.trainer.use_liger_kernel=true"),
    ("sft.runtime.nodes='٣'", "sft.runtime.nodes=٣: "),
    ("sft.learning_rate='١e-4'", "Write it as 0.0001."),
    ("dpo.batch_size=1_0,2_0", "dpo.batch_size=1_0: "),
    ("seeds=[1,2_0]", "seeds=2_0: "),
    ("sft={runtime:{nodes:'٣'}}", "sft.runtime.nodes=٣: "),
    ("data=file data.sources=[{path:README.md,rows:'٣'}]", "data.sources.rows=٣: "),
    ("prices={writer:{input:'٣',output:1}}", "prices.input=٣: "),
    ("sft.epochs=2.0000001", "Type sft.epochs=2."),
    ("sft.epochs=0.9999999", "Type sft.epochs=1."),
    ("data=file data.sources=[{path:README.md,epochs:2.0001}]", "data.sources[0].epochs=2.0001: "),
    ("dpo.evaluations=2000000000", "from 0 to 1,000."),
    ("rounds=2000000000", "from 1 to 100."),
    ("report.side_by_side=2000000000", "from 0 to 1,000,000,000."),
    ("model.path=../nowhere", "model.path=../nowhere: there is no such file or folder."),
    ("label=dataset label.path=a..b/c", "label.path=a..b/c: there is no such file or folder."),
    ("tracker=wandb tracker.group=..", "tracker.group=..: "),
    ("data=nan", "data=nan does not exist."),
    ("scale=-inf", "scale=-inf does not exist."),
    ("label=[1,2]", "label=1 does not exist."),
    ("data=[file,tiny]", "Type data=file."),
]


@pytest.mark.extended
def test_it_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        main, "build", lambda *_: pytest.fail("something is built before it is refused")
    )
    lines = {typed: refused(*TINY, f"outputs={tmp_path}", *typed.split()) for typed, _ in REFUSED}
    assert {typed: lines[typed] for typed, part in REFUSED if part not in lines[typed]} == {}


@pytest.mark.parametrize(
    "typed",
    [
        "sample.candidates_per_prompt=1 stage=label",
        "sft.epochs=0.25 dpo.epochs=2.5",
        "sft.template.resize=true control=0",
        "dpo.beta='0.1' seeds=['3',7]",
        "tracker=[none,wandb]",
        # peft's names may begin anywhere
        "dpo.adapter=lora dpo.lora.target_modules=[self_attn.q_proj]",
        "sft.trainer.lr_scheduler_type=cosine_with_min_lr sft.trainer.lr_scheduler_kwargs={min_lr_rate:0.1}",
    ],
)
def test_what_makes_sense_is_let_through(typed: str) -> None:
    constraints.validate_config(settings(*TINY, *typed.split()))


def test_the_layers_of_any_model_are_known() -> None:
    """GPT-2 has its projections of query, key and value in one layer."""
    gpt2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16}
    capacity.require_layers("sft", LoRA(4, 8, ["c_attn"]), gpt2)
    with pytest.raises(UserError, match=r"sft\.lora\.target_modules=\['c_attn', 'q_proj'\]"):
        capacity.require_layers("sft", LoRA(4, 8, ["c_attn", "q_proj"]), gpt2)
    capacity.require_layers("sft", LoRA(4, 8, ["q_proj"]), {"model_type": "of the future"})
