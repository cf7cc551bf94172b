"""Calculate the memory of every training on GPUs that this machine lacks, with neither weights nor data at hand."""

from dataclasses import dataclass

from stages.commands.earlier import uses_gpu
from stages.commands.result import Result, new_table, print_parts
from stages.config.blocks.objective import Training
from stages.config.choices import GPUS
from stages.config.schema import Config
from stages.extras.forecast.peak import longest_row_tokens, model_shape, training_parts
from stages.hardware import memory
from stages.store.node import Node
from stages.store.store import Store

MEMORY = (*memory.Parts._fields, "peak", "main memory")


@dataclass
class CalculatedNode:
    """A training's bytes per GPU, at the peak and by its parts, and in one machine's main memory."""

    name: str
    memory: dict[str, float]


@dataclass
class CalculatedPlan(Result):
    """`sentences`: the GPUs, then the trainings that do not fit."""

    nodes: list[CalculatedNode]
    sentences: list[str]

    def show(self) -> None:
        table = new_table("node", numbers=MEMORY)
        for node in self.nodes:
            gibs = [f"{size / 2**30:.1f}" if size else "" for size in node.memory.values()]
            table.add_row(node.name.replace("_", " "), *gibs)
        print_parts(table, *self.sentences)


def calculate(cfg: Config, nodes: dict[str, Node], store: Store) -> CalculatedPlan:
    """Return, for every training, the parts of its peak per GPU and the main memory of one machine."""
    gpu = str(cfg.planned_gpu)
    gigabytes = GPUS[gpu][1]
    gpu_count = cfg.launch.processes * cfg.launch.nodes
    sentences = [f"{gpu_count} × {gpu} of {gigabytes} GB. The table shows GiB per GPU."]
    planned = list[CalculatedNode]()
    for name, node in nodes.items():
        if not isinstance(node.config, Training) or not uses_gpu(node):
            continue
        shape = model_shape(node, store)
        if shape is None:
            continue
        parts = training_parts(shape, node.config, longest_row_tokens(node, nodes), "cuda")
        peak = sum(parts)
        main_memory = memory.host_bytes(shape, node.config)
        bytes_by_part = parts._asdict() | {"peak": peak, "main memory": main_memory}
        planned.append(CalculatedNode(name, bytes_by_part))
        if peak > gigabytes * 1e9:
            sentences.append(f"{name} does not fit.")
    return CalculatedPlan(planned, sentences)
