"""The table of who reads an argument of TRL's, row by row against TRL and transformers: a loss, a step or a rate is
another with another value exactly where the table says that the argument is read."""

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, get_scheduler, trainer_optimizer
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames
from trl import DPOConfig, RewardConfig, SFTConfig

from stages import dpo, reward, sft
from stages.config import trl_arguments
from stages.config.choices import LOSS_TYPES, Checkpointing
from stages.config.errors import UserError
from stages.config.unread_arguments import OPTIMIZER_OPTIONS, RULES, SCHEDULE_OPTIONS
from stages.store.sealed_json import file_digest
from stages.store.workspace import StageDir
from tests.helpers import TINY, Chain, settings, slow_but
from tests.upstream.parts import Parts, loss_of

# Arguments that are read whatever else is set. A new argument of TRL's stands in the table or here, or is refused.
ALWAYS_READ = set(
    "center_rewards_coefficient debug disable_dropout full_determinism log_level loss_type lr_scheduler_kwargs "
    "lr_scheduler_type max_grad_norm neftune_noise_alpha optim optim_args pad_to_multiple_of router_aux_loss_coef "
    "torch_compile torch_compile_backend torch_compile_mode use_cache use_liger_kernel use_weighting".split()
)
OF_LOSSES = {"label_smoothing": 0.2, "discopop_tau": 0.5, "f_divergence_type": "js_divergence", "ld_alpha": 0.3}
OF_OPTIMIZERS = {"adam_beta1": 0.5, "adam_beta2": 0.5, "adam_epsilon": 0.1, "weight_decay": 0.5}
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")  # of no further package
OPTIONS = {
    "centered": "momentum=0.9,centered=true",
    "nesterov": "momentum=0.9,nesterov=true",
    "dampening": "momentum=0.9,dampening=0.5",
}  # else NAME=0.3
SCHEDULE_VALUES = {"num_cycles": 2, "timescale": 3, "num_decay_steps": 7, "num_stable_steps": 2}
SCHEDULE_VALUES |= {"warmup_type": "cosine", "decay_type": "linear"}
STAGES = {"sft": (sft, SFTConfig), "dpo": (dpo, DPOConfig), "reward": (reward, RewardConfig)}
INPUTS = {
    "sft": {"base": "base", "data": "data"},
    "dpo": {"policy": "sft", "pairs": "pairs", "reference": "reference"},
    "reward": {"policy": "sft", "judged": "label", "pairs": "pairs"},
}
# Values of arguments of several types or words, that are not their defaults.
OTHER = {"hub_strategy": "end", "log_level_replica": "info", "include_for_metrics": ["loss"]}
OTHER |= {"metric_for_best_model": "loss", "gradient_checkpointing_kwargs": {"use_reentrant": False}}
NOT_TOGETHER = ("fp16_full_eval", "dataloader_multiprocessing_context", "dataloader_persistent_workers")
NOT_TOGETHER += ("dataloader_prefetch_factor",)  # of workers, whose absence torch refuses itself
IN_TABLE = {key for rule in RULES for key in rule.arguments.split()}


def reads(argument: str, block: Any) -> bool:
    """Return what the table says."""
    return all(rule.is_read(block) for rule in RULES if argument in rule.arguments.split())


def test_every_argument_is_in_the_table_or_always_read() -> None:
    every = set.union(*map(trl_arguments.allowed_arguments, ("sft", "dpo", "reward")))
    assert every == IN_TABLE | ALWAYS_READ
    assert not IN_TABLE & ALWAYS_READ


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_a_loss_is_another_by_what_it_reads(loss: str, parts: Parts) -> None:
    def value(**changes: Any) -> float | None:
        arguments = {"label_smoothing": 0.05, **changes}
        try:
            return loss_of(parts.build_trainer(shift=0.7, loss_type=[loss], trainer=arguments))
        except ValueError as error:
            assert "f_divergence_type" in str(error)  # trl_arguments refuses it
            return None

    plain = value()
    for argument, other in OF_LOSSES.items():
        changed = value(**{argument: other})
        read = reads(argument, parts.block(loss_type=[loss], trainer={argument: other}))
        assert read is (changed not in (None, plain)), argument


def test_a_loss_of_weight_0_reads_nothing(parts: Parts) -> None:
    def value(smoothing: float, weight: float) -> float:
        changes = {"loss_type": ["sigmoid", "robust"], "loss_weights": [1.0, weight]}
        loss = loss_of(parts.build_trainer(shift=0.7, trainer={"label_smoothing": smoothing}, **changes))
        assert reads("label_smoothing", parts.block(**changes)) is (weight > 0)
        return loss

    assert value(0.0, 0.0) == value(0.2, 0.0)
    assert value(0.0, 0.5) != value(0.2, 0.5)


@pytest.mark.parametrize("divergence", ["js_divergence", "alpha_divergence"])
def test_the_coefficient_is_of_one_divergence(divergence: str, parts: Parts) -> None:
    arguments = [{"f_divergence_type": divergence, "f_alpha_divergence_coef": value} for value in (0.5, 0.8)]
    one, other = (loss_of(parts.build_trainer(shift=0.7, trainer=each)) for each in arguments)
    assert (one != other) is reads("f_alpha_divergence_coef", parts.block(trainer=arguments[0]))


@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_smoothed_labels_are_of_one_loss_of_sft(loss: str, parts: Parts) -> None:
    def value(smoothing: float) -> float:
        return loss_of(parts.supervised(micro=4, loss_type=loss, label_smoothing_factor=smoothing))

    block = replace(parts.settings.sft, trainer={"loss_type": loss})
    assert (value(0.0) != value(0.2)) is reads("label_smoothing_factor", block)


def weights_after(folder: Path, steps: int = 3, **arguments: Any) -> torch.Tensor:
    """Return a layer's weights after steps of the optimizer that transformers makes of these arguments."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none", learning_rate=0.1, **arguments)
    optimizer = Trainer(model, args).create_optimizer()
    for step in range(steps):
        model[0].weight.grad = torch.linspace(-1, 1, 16).reshape(4, 4) + step
        model[0].bias.grad = torch.ones(4)
        optimizer.step()
    return torch.cat([model[0].weight.detach().flatten(), model[0].bias.detach()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_another_by_what_its_optimizer_reads(name: str, parts: Parts, tmp_path: Path) -> None:
    plain, block = weights_after(tmp_path, optim=name), parts.block(trainer={"optim": name})
    for argument, value in OF_OPTIMIZERS.items():
        changed = weights_after(tmp_path, optim=name, **{argument: value})
        assert reads(argument, block) is not torch.equal(plain, changed), argument
    names = OPTIMIZER_OPTIONS.get(name, "").split()
    for option in {*" ".join(OPTIMIZER_OPTIONS.values()).split(), "weight_decay"}:
        typed = OPTIONS.get(option, f"{option}=0.3")
        # nesterov and dampening are options of momentum
        without = weights_after(tmp_path, optim=name, optim_args="momentum=0.9") if option in OPTIONS else plain
        changed = weights_after(tmp_path, optim=name, optim_args=typed)
        assert (option in names) is not torch.equal(without, changed), option


HANDLERS = {str(name.value): handler for name, handler in trainer_optimizer._OPTIMIZER_HANDLERS.items()}


class Chosen(ast.NodeTransformer):
    """Leaves of every condition on the optimizer's name the branch that is taken for one."""

    def __init__(self, name: str):
        ctx = SimpleNamespace(args=SimpleNamespace(optim=name))
        self.names = {"optim_name": name, "ctx": ctx, "OptimizerNames": OptimizerNames}

    def visit_If(self, node: ast.If) -> Any:
        try:
            branch = node.body if eval(ast.unparse(node.test), dict(self.names)) else node.orelse
        except (NameError, AttributeError):  # a condition on something else
            return self.generic_visit(node)
        return [self.visit(line) for line in branch] or ast.Pass()


def source_of(name: str) -> str:
    """Return the source by which transformers makes an optimizer, from the last time that it begins its arguments."""
    source = ast.unparse(Chosen(name).visit(ast.parse(inspect.getsource(HANDLERS[name]))))
    return source.rpartition("additional_optim_kwargs = ")[2]


@pytest.mark.parametrize("name", sorted({*HANDLERS} - {*OPTIMIZERS}))
def test_what_an_optimizer_of_another_package_is_handed(name: str, parts: Parts) -> None:
    """None of them need be installed: what transformers hands them stands in its source."""
    block, source = parts.block(trainer={"optim": name}), source_of(name)
    handed = re.findall(r"optim_args\.(?:get|pop)\('(\w+)'", source) + re.findall(
        r"if '(\w+)' in ctx\.optim_args", source
    )
    pattern = next((pattern for pattern in OPTIMIZER_OPTIONS if re.fullmatch(pattern, name)), None)
    names = OPTIMIZER_OPTIONS[pattern].split() if pattern else []
    assert sorted(handed) == sorted(names) or source.startswith("ctx.optim_args")
    read_in = lambda *words: any(word in source for word in words)
    assert reads("adam_epsilon", block) is read_in("adam_kwargs", "adam_epsilon")
    assert reads("adam_beta1", block) is read_in("adam_kwargs", "adam_beta1")
    assert reads("optim_target_modules", block) is read_in("_setup_low_rank_optimizer")
    assert reads("weight_decay", block) is not read_in("_setup_low_rank_optimizer", "{'model': ctx.model}")
    unscheduled = parts.block(trainer={"optim": name, "lr_scheduler_type": "constant"})
    assert reads("warmup_steps", unscheduled) is (read_in("warmup_steps") and not read_in("require_warmup = False"))


def schedule_rates(name: str, warmup: int = 0, **options: Any) -> list[float]:
    """Return a schedule's learning rates over twenty steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    schedule = get_scheduler(name, optimizer, warmup, 20, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", [kind.value for kind in TYPE_TO_SCHEDULER_FUNCTION])
def test_a_rate_is_another_by_what_its_schedule_reads(name: str, parts: Parts) -> None:
    if name in ("reduce_lr_on_plateau", "greedy"):
        return  # which are refused
    names, required = SCHEDULE_OPTIONS.get(name, "").split(), {}
    if name == "warmup_stable_decay":
        required = {"num_decay_steps": 10}
    elif "min_lr" in name:
        required = {"min_lr_rate": 0.1}
    plain = schedule_rates(name, 4, **required)
    block = parts.block(trainer={"lr_scheduler_type": name})
    assert reads("warmup_steps", block) is (plain != schedule_rates(name, 0, **required))
    for option in names:
        options = {**required, option: SCHEDULE_VALUES.get(option, 0.3)}
        if option == "min_lr":
            del options["min_lr_rate"]
        assert schedule_rates(name, 4, **options) != plain, option
    for option in {*" ".join(SCHEDULE_OPTIONS.values()).split()} - {*names}:
        try:
            assert schedule_rates(name, 4, **required, **{option: 0.3}) == plain
        except TypeError as error:
            assert option in str(error)


def other_value(name: str, argument: str) -> Any:
    """Return a value that is not the argument's default."""
    field, kind = STAGES[name][1].__dataclass_fields__[argument], trl_arguments.argument_types(name)[argument]
    if argument in OTHER:
        return OTHER[argument]
    if "bool" in kind:
        return not field.default
    values = {"int": 7, "float": 0.3, "dict": {"every_n_layers": 2}, "str": "x"}
    return next(value for word, value in values.items() if word in kind)


def trained(name: str, cfg: Any, chain: Chain, folder: Path) -> tuple[str, list[Any]]:
    """Return the digest of the weights that a stage makes, and its curves."""
    curves, folders = list[Any](), {role: chain.folder(node) for role, node in INPUTS[name].items()}
    folder.mkdir()
    log = lambda metrics, step: curves.append({k: v for k, v in metrics.items() if not re.search("time|second", k)})
    STAGES[name][0].run(cfg, folders, StageDir(folder, log))
    return file_digest(folder / "model" / "model.safetensors"), curves


@pytest.mark.parametrize("name", slow_but(STAGES, "dpo"))
def test_what_nothing_reads_changes_nothing_and_is_refused(name: str, chain: Chain, tmp_path: Path) -> None:
    cfg = vars(settings(*TINY, "precision=fp32"))[name]
    runtime = replace(cfg.runtime, device="cpu", gradient_checkpointing=Checkpointing.none)
    cfg = replace(cfg, runtime=runtime, epochs=0.5)
    weights, curves = trained(name, cfg, chain, tmp_path / "plain")
    unread = {key: other_value(name, key) for key in trl_arguments.allowed_arguments(name) if not reads(key, cfg)}
    assert len(unread) > 30
    for key, value in unread.items():
        with pytest.raises(UserError, match=f"^{name}.trainer.{key}={re.escape(str(value))}: nothing reads"):
            trl_arguments.validate_trainer(name, replace(cfg, trainer=cfg.trainer | {key: value}), cfg.trainer)
    together = {key: value for key, value in unread.items() if key not in NOT_TOGETHER}
    other = replace(cfg, trainer=cfg.trainer | together)
    other_weights, other_curves = trained(name, other, chain, tmp_path / "other")
    assert other_weights == weights
    for point, other_point in zip(curves, other_curves, strict=True):
        # Where labels would be smoothed, rows are evaluated alone.
        assert other_point == pytest.approx(point, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "losses", "way_out"),
    [
        (
            {"label_smoothing": 0.1},
            ["sigmoid", "sft"],
            "dpo.loss_type=[robust,sft], or dpo.trainer.label_smoothing=0.0.",
        ),
        ({"label_smoothing": 0.1}, ["robust", "sft"], None),
        ({"label_smoothing": 0.0, "adam_beta1": 0.9}, ["sigmoid"], None),  # TRL's defaults change nothing
        ({"f_divergence_type": "forward_kl"}, ["sft"], "dpo.loss_type=[sigmoid]"),
        ({"adam_epsilon": 1e-6, "optim": "sgd"}, ["sigmoid"], "dpo.trainer.optim=adamw_torch_fused"),
        ({"warmup_steps": 3, "lr_scheduler_type": "constant"}, ["sigmoid"], "constant_with_warmup"),
        ({"warmup_steps": 0.1, "lr_scheduler_type": "constant"}, ["sigmoid"], None),  # the group's own
        (
            {"optim": "sgd", "optim_args": "momentun=0.9"},
            ["sigmoid"],
            "sgd does not read momentun. Did you mean 'momentum'?",
        ),
        ({"optim_args": "momentum=0.9"}, ["sigmoid"], "adamw_torch_fused does not read momentum. Leave it out."),
        ({"lr_scheduler_kwargs": {"power": 2}}, ["sigmoid"], "cosine does not read power"),
        ({"dataloader_prefetch_factor": 2}, ["sigmoid"], "dpo.runtime.loader_workers=2"),
    ],
)
def test_the_way_to_what_reads_an_argument_is_told(
    arguments: dict[str, Any], losses: list[str], way_out: str | None
) -> None:
    cfg = settings(*TINY).dpo
    block = replace(cfg, trainer=cfg.trainer | arguments, loss_type=losses)
    if way_out is None:
        trl_arguments.validate_trainer("dpo", block, cfg.trainer)
        return
    with pytest.raises(UserError, match=re.escape(way_out)):
        trl_arguments.validate_trainer("dpo", block, cfg.trainer)
