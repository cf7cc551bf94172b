"""The result of `stage=plan`, as tables and sentences."""

import math
import sys
from dataclasses import dataclass

from rich.table import Table

from stages.commands.result import Result, new_table, print_parts
from stages.config.errors import visible

UNMEASURED = "not measured yet"


@dataclass
class PlannedNode:
    """A node with its expected cost: the bytes of memory at its peak, and seconds; nan if they are not known.
    `processor`: whose memory, GPU or RAM; None if no extra forecasts it. `guessed`: nothing like the node was measured,
    so its time is a guess."""

    name: str
    stage: str
    fingerprint: str
    state: str
    changes: list[str]
    memory: float
    processor: str | None
    seconds: float
    guessed: bool = False


@dataclass
class PlannedCalls:
    """The calls that a node makes to an endpoint. `output_tokens` and `money` are the most that it can use. Numbers
    are nan if they are not known yet; `money` is None without a price."""

    node: str
    key: str
    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    money: float | None


@dataclass
class PlanResult(Result):
    """`sentences`: the time of all nodes, and the stages that are not planned. `next_command`: what builds them, or
    what plans the last run if nothing is planned; None if its manifest records no command of this program."""

    nodes: list[PlannedNode]
    calls: list[PlannedCalls]
    sentences: list[str]
    next_command: str | None

    def show(self) -> None:
        print_parts(nodes_table(self.nodes))
        if self.calls:
            print_parts(calls_table(self.calls))
        print_parts(*self.sentences)


@dataclass
class LastRun(PlanResult):
    """A plan of nothing, as no settings are typed. `look_at`: settings of the last run that name a program, code or a
    server."""

    look_at: list[str]

    def show(self) -> None:
        lines = [*self.sentences, *(f"Look first: {setting}" for setting in self.look_at)]
        if self.next_command:
            lines += ["To plan it, type:", self.next_command]
        # a table would break the line that a user copies
        sys.stdout.write("\n".join([*lines, ""]))


def nodes_table(nodes: list[PlannedNode]) -> Table:
    """Return the table of nodes with their changes, and with their costs if an extra forecasts them."""
    is_forecast = any(node.processor for node in nodes)
    columns = ("node", "fingerprint", "state", "what changed")
    table = new_table(*columns, numbers=("memory", "time") if is_forecast else ())
    for node in nodes:
        cells = [node.name.replace("_", " "), node.fingerprint, node.state]
        cells.append(visible("; ".join(node.changes)))
        if is_forecast:
            cells += cost_cells(node)
        table.add_row(*cells)
    return table


def cost_cells(node: PlannedNode) -> list[str]:
    """Return the memory and the time of a node as text."""
    memory = f"{node.memory / 2**30:.1f} GiB {node.processor}"
    time = UNMEASURED if math.isnan(node.seconds) else f"{node.seconds:.0f} s"
    if node.guessed:
        time = f"a guess: {time}"
    return ["" if math.isnan(node.memory) else memory, "" if node.state == "cached" else time]


def calls_table(planned: list[PlannedCalls]) -> Table:
    """Return the table of expected calls to endpoints, with their tokens and costs."""
    numbers = ("calls", "tokens in", "out, at most", "money, at most")
    table = new_table("asks", "endpoint", "model", numbers=numbers)
    for calls in planned:
        name = calls.node.replace("_", " ")
        model = visible(calls.model)
        amounts = map(number_text, (calls.calls, calls.input_tokens, calls.output_tokens))
        table.add_row(name, calls.key, model, *amounts, number_text(calls.money, digits=2))
    return table


def number_text(value: float | None, digits: int = 0) -> str:
    """Return a number as text, or `?` if it is not known."""
    if value is None or math.isnan(value):
        return "?"
    return f"{value:,.{digits}f}"
