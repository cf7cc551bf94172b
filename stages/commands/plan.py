"""`stage=plan`: nothing runs. Every node with its state, what changed since the nearest one, and what it would cost.

Memory is the peak: on a GPU of what is allocated there, else of what is resident; that of such a node where nothing
differs that it depends on, else an estimate. Tokens and time are scaled from finished nodes of the same stage; a stage
of which nothing like it ran on this processor is `not measured yet`.
"""

import math
import os
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.commands.node_settings import named
from stages.commands.planning import cost, expected_calls
from stages.commands.planning.cost import RunHistory
from stages.commands.planning.expected_calls import ExpectedCalls
from stages.commands.planning.peak import on_gpu
from stages.commands.planning.tokens import Contribution, contributions
from stages.config.blocks.evaluation import Versus
from stages.config.errors import visible
from stages.config.installation import ROOT, checkout_project
from stages.preflight.constraints import EVALUATING
from stages.store.manifest import Manifest
from stages.store.node import Node
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

HASHED_PER_SECOND = 1.7e9  # bytes, SHA-256 on one core of an AMD EPYC
SHOWN_SECONDS = 5  # of hashing, and more
UNMEASURED = "not measured yet"


def show(nodes: dict[str, Node], store: Store, untested: str = "") -> None:
    """Print the plan of every node, in the order in which they would be built. What the usual store holds tells how
    fast this machine is, wherever this store may lie. `untested`: why a run refuses to evaluate, so that it is not
    planned either; '' where it does not refuse."""
    table = Table("node", "fingerprint", "state", "what changed", box=None, header_style="bold", pad_edge=False)
    for title in ("tokens", "memory", "disk", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    usual = Store(Path(os.environ.get(OUTPUTS) or (ROOT / "outputs" if checkout_project() else "outputs")))
    past = RunHistory(store, *([usual] if usual.root.resolve() != store.root.resolve() else []))
    seconds, renewed, unmeasured = dict[str, float](), dict[str, float](), list[str]()
    asked, read = dict[str, list[ExpectedCalls]](), set[Node]()
    planned = {name: node for name, node in nodes.items() if not (untested and node.stage in EVALUATING)}
    for name, node in planned.items():
        state = store.state(node)
        costs = cost.expected(node, nodes, store, past)
        notes = changed(node, state, store)
        if asked_here := expected_calls.expected(node, store, past):
            asked[name] = asked_here
        if (asked_here or expected_calls.of_people(node)) and not past.earlier.of(node):  # at the pace of others
            costs = replace(costs, seconds=math.nan)
        if state != "cached":
            read.update(node.inputs.values())
            if math.isnan(costs.seconds):
                unmeasured.append(name)
            else:
                seconds[name] = costs.seconds
                if past.earlier.of(node):
                    renewed[name] = costs.seconds
        table.add_row(
            name.replace("_", " "),
            node.fingerprint,
            state,
            visible("; ".join(notes)),
            f"{costs.tokens:,}" if costs.tokens else "",
            "?" if math.isnan(costs.memory) else f"{costs.memory / 2**30:.1f} GiB {'GPU' if on_gpu(node) else 'RAM'}",
            f"{costs.disk / 2**30:.1f} GiB" if costs.disk > 2**26 else "",
            "" if state == "cached" else UNMEASURED if math.isnan(costs.seconds) else f"{costs.seconds:.0f} s",
        )
    console = Console(width=None if os.isatty(1) else 160, markup=False)
    console.print(table)
    if brought := contributions(nodes["data"], store):
        console.print(sources(brought))
    if asked:
        console.print(endpoints(asked))
    for name, node in planned.items():
        if isinstance(node.config, Versus) and not node.config.constant:
            console.print(comparison(name, node, store, past))
    console.print(to_build(seconds, unmeasured))
    if (hashed := hashing(read, store)) >= SHOWN_SECONDS:
        console.print(f"Finished nodes that these read are hashed first: {hashed:.0f} s where the disk keeps up.")
    if untested:
        console.print(f"Not planned: {', '.join(EVALUATING)}. {untested}")
    if renewed:
        console.print(
            f"Of these, {len(renewed)} nodes only because Plumbline makes something else of the same settings now "
            f"(version): {sum(renewed.values()):.0f} s, for {', '.join(renewed)}. CHANGELOG.md says what."
        )


def to_build(seconds: dict[str, float], unmeasured: list[str]) -> str:
    """Return the sentences on the whole time, by the seconds of nodes and the nodes without a measured time."""
    least = "at least " if unmeasured else ""
    total = f"{least}{sum(seconds.values()) / 60:.1f} min, from nodes of the same stage on this processor."
    parts = [total] if seconds or not unmeasured else []
    missing = [f"{UNMEASURED} ({len(unmeasured)}): {', '.join(unmeasured)}."] if unmeasured else []
    return f"To build: {' '.join(parts + missing)}"


def hashing(inputs: set[Node], store: Store) -> float:
    """Return the seconds in which the files of finished nodes are hashed, a file to a core."""
    manifests = [manifest for node in inputs if (manifest := store.find(node))]
    sizes = [entry["bytes"] for manifest in manifests for entry in manifest["files"].values()]
    return sum(sizes) / HASHED_PER_SECOND / max(1, min(len(sizes), os.cpu_count() or 1))


def sources(brought: list[Contribution]) -> Table:
    """What each source brings for sft."""
    table = Table("source", box=None, header_style="bold", pad_edge=False)
    for title in ("rows for sft", "come", "tokens", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    every = sum(each.tokens or 0 for each in brought)
    for each in brought:
        mark = "" if each.exact else "~"
        amounts = ["?" if n is None else f"{mark}{n:,.0f}" for n in (each.rows, each.total, each.tokens)]
        known = each.tokens is not None and all(other.tokens is not None for other in brought)
        table.add_row(visible(each.name), *amounts, f"{(each.tokens or 0) / max(1, every):.0%}" if known else "?")
    return table


def comparison(name: str, node: Node, store: Store, past: RunHistory) -> str:
    """Return how small a difference a comparison of so many prompts can show."""
    from stages.evaluation.win_rates import detectable  # with numpy, which other plans are spared

    prompts, title = cost.pool_to_be(node, store, past).rows / 2, name.replace("_", " ")
    if not prompts:
        return f"{title}: nobody knows yet how many prompts are compared."
    points = 100 * detectable(int(prompts))
    return f"{title}: {prompts:,.0f} prompts show a win rate that is {points:.0f} points off 50%, four times of five."


def endpoints(asked: dict[str, list[ExpectedCalls]]) -> Table:
    """What nodes would ask of endpoints, and what that costs where it is known."""
    table = Table("asks", "endpoint", "model", box=None, header_style="bold", pad_edge=False)
    for title in ("calls", "tokens in", "out, at most", "money, at most"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, those in asked.items():
        for each in those:
            amounts = [f"{n:,.0f}" if math.isfinite(n) else "?" for n in (each.calls, each.input, each.output)]
            known = each.money is not None and math.isfinite(each.money)
            money = f"{each.money:,.2f}" if known else "?"
            table.add_row(name.replace("_", " "), each.key, visible(str(each.endpoint.model)), *amounts, money)
    return table


def changed(node: Node, state: str, store: Store) -> list[str]:
    """Which settings and inputs differ from the nearest published node of the stage."""
    notes = [f"not neutral here: {key}={value}" for key, value in node.fixed.items()]
    if state != "cached":
        earlier = [differences(node, manifest) for _, manifest in store.manifests(node.stage)]
        if not earlier:
            notes.append("the first of its kind")
        else:
            nearest = min(earlier, key=len)
            notes += nearest or ["rebuild asked for it, an input was built again, or a file is damaged"]
    return notes


def differences(node: Node, manifest: Manifest) -> list[str]:
    """`learning_rate 5e-05 -> 0.0001`, `path pairs.jsonl: its content`, `input sft`."""
    now = {key: (value, name) for key, value, name in named(node.settings, asdict(node.config))}
    then = {key: (value, name) for key, value, name in named(manifest["settings"], manifest["config"])}
    found = [f"version {manifest['version']} -> {node.version}"] if manifest["version"] != node.version else []
    for key in sorted(now | then):
        (value, name), (old_value, old_name) = now.get(key, (None, "–")), then.get(key, (None, "–"))
        if value != old_value:
            found.append(f"{key} {name}: its content" if name == old_name else f"{key} {old_name} -> {name}")
    before = {role: given["fingerprint"] for role, given in manifest["inputs"].items()}
    after = {role: given.fingerprint for role, given in node.inputs.items()}
    return found + [f"input {role}" for role in sorted(before | after) if before.get(role) != after.get(role)]
