"""`stage=export`: write a model, or its training data as a dataset, to files or to the hub.

`datasets.load_dataset` opens the folder of a dataset: TRL's columns in Parquet by configuration and split, and a card.
Every row names its source. Token ids are left out, as they only fit one tokenizer."""

import logging
import re
from collections import ChainMap, Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from stages.commands import finished_run
from stages.commands.documents import evaluation_section, render
from stages.commands.finished_run import config_of, damaged_if_odd, require_nodes
from stages.config.blocks.models import Model
from stages.config.blocks.training import OBJECTIVES
from stages.config.choices import ExportFormat, GGUFType, Reads, Role
from stages.config.errors import UserError, visible
from stages.config.schema import Config
from stages.config.stage_table import DRAWING, POLICY_STAGES, Target
from stages.evaluation.results import read_results
from stages.extras.export import Export
from stages.hardware import process
from stages.models import hub
from stages.models.base_licence import licence_message, read_licence
from stages.models.model_card import model_name, source_name
from stages.pages.control_name import name_control
from stages.store.licences import UNKNOWN
from stages.store.manifest import Manifest, manifest_of
from stages.store.node import Node, in_build_order
from stages.store.records import MESSAGES, content_id
from stages.store.sealed_json import remove, replace_folder
from stages.store.source_files import locate
from stages.store.store import Store

log = logging.getLogger(__name__)

DATASET_CARD = Path(__file__).with_name("dataset_card.md.jinja")
Tables = dict[str, dict[str, pa.Table]]  # by configuration, then by split; no table is empty
ORIGIN_COLUMNS = ("source", "task", "licence")  # of a prompt
SPLITS = ("train", "validation")
# The data's splits that SFT reads, with their names in the dataset.
SFT_SPLITS = {"sft": "train", "validation": "validation"}
PREFERENCE_COLUMNS = [
    "id",
    "prompt_id",
    "prompt",
    "chosen",
    "rejected",
    "labeler",
    "strategy",
    "chosen_policy",
    "rejected_policy",
    "rejected_finish_reason",
    "margin",
    "split",
]
UNPAIRED_COLUMNS = [
    "id",
    "prompt_id",
    "prompt",
    "completion",
    "label",
    "score",
    "labeler",
    "policy",
    "finish_reason",
    "split",
]
# The tables of a dataset, with the kind of rows that each has
TABLES = {
    "preferences": Reads.pairs,
    "unpaired": Reads.unpaired,
    "demonstrations": Reads.examples,
}
# names of licences that data sets have: the hub accepts no other words than its own
HUB_LICENCES = [
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "gpl-3.0",
    "agpl-3.0",
    "lgpl-3.0",
    "mpl-2.0",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc-by-nc-3.0",
    "cc-by-nc-4.0",
    "cc-by-nd-4.0",
    "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "odc-by",
    "odbl",
    "pddl",
    "cdla-sharing-1.0",
    "cdla-permissive-2.0",
    "openrail",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "llama3.3",
    "gemma",
    "unknown",
]


def escape_cell(text: str) -> str:
    """Return text from outside with Markdown escaped, on one line for a table cell."""
    return " ".join(re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text).split())


def run(cfg: Config, store: Store, nodes: dict[str, Node], overrides: list[str]) -> None:
    """Export a model of a finished run, or what its models were trained on."""
    process.warn_of_versions()
    settings: Export = vars(cfg)["export"]
    finished = finished_run.find_run(cfg, nodes, store)
    if settings.format is ExportFormat.dataset:
        with damaged_if_odd(store.root / "latest"):
            exported = nodes_trained_on(finished.models)
        judged = [node.inputs["judged"] for node in exported if "judged" in node.inputs]
        # these say where a prompt is from
        require_nodes(judged, cfg, store, overrides, finished.settings)
    else:
        exported = [finished.model(settings.model, "export.model")]
        if settings.format is ExportFormat.gguf:
            require_gguf(exported[0], store)
    require_nodes(exported, cfg, store, overrides, finished.settings)
    store.verify(*map(store.folder, exported))
    write(settings, exported, finished.evaluation, store)


def require_gguf(model: Node, store: Store) -> None:
    """Raise UserError if no GGUF file can be written of the base model of a model, which may not be trained yet."""
    from stages.extras.export import (
        gguf_file,  # imported here, as it loads torch, which takes seconds
    )

    for base in in_build_order([model]):
        if not isinstance(base.config, Model):
            continue
        folder: Path | None = store.folder(base) / "model"
        if not store.find(base):
            folder = locate(str(base.config.path), base.config.key) if base.config.path else None
        if folder and folder.is_dir():
            gguf_file.read_exportable(folder)


def trainers_of(reads: Reads) -> str:
    """Return the names of TRL's trainers of objectives that learn from a kind of rows."""
    objectives = [objective for objective in OBJECTIVES.values() if objective.reads is reads]
    names = [objective.trl.replace("Config", "Trainer") for objective in objectives]
    return f"TRL's {' and '.join(names)}"


def nodes_trained_on(models: dict[str, Node]) -> list[Node]:
    """Return the nodes that models were trained on: pairs of every round, labelled completions, and SFT's examples."""
    roles = [Role.policy, *(name for name in POLICY_STAGES if name not in DRAWING)]
    trained = [models[role] for role in roles if role in models]
    pairs = list[Node]()
    labels = list[Node]()
    for model in trained:  # an arm may have labels, too
        config_of(model)  # which a deleted model does not have
        labelled = model.inputs.get("unpaired")
        if labelled and labelled not in labels:
            labels.append(labelled)
        while model.stage == Target.dpo:
            if model.inputs["pairs"] not in pairs:
                pairs.insert(0, model.inputs["pairs"])
            model = model.inputs["policy"]  # of the round before
    tables = [*pairs, *labels]
    sft = models.get(Role.sft) or models[Role.policy]
    if config_of(sft)["train"]:
        tables.append(sft.inputs["data"])
    return tables


def write(cfg: Export, nodes: list[Node], evaluation: Node | None, store: Store) -> None:
    """Export a model, or a dataset of several nodes. The card of a pushed model has the results of its evaluation."""
    if cfg.format is ExportFormat.dataset:
        return publish_dataset(cfg, nodes, store)
    [node] = nodes
    licence = licence_message(read_licence(store.folder(node) / "model"))
    if licence:
        log.info("%s", licence)
    if cfg.format is ExportFormat.gguf:
        write_gguf_file(cfg, node, store)
    else:
        push_model(cfg, node, evaluation, store)


def write_gguf_file(cfg: Export, node: Node, store: Store) -> None:
    """Write a GGUF file to `outputs/export/`."""
    from stages.extras.export import (
        gguf_file,  # imported here, as it loads torch, which takes seconds
    )

    model = store.folder(node) / "model"
    name = model_name(node.stage, node.fingerprint, read_licence(model))
    dtype = cfg.dtype or GGUFType.f16
    file = store.root / "export" / f"{node.stage}-{node.fingerprint}-{dtype}.gguf"
    with store.lock("export", file.stem):  # a second export waits for the first
        gguf_file.write_gguf(model, file, dtype, name)
    log.info("The file: %s (%.1f MiB)", file, file.stat().st_size / 2**20)


def push_model(cfg: Export, node: Node, evaluation: Node | None, store: Store) -> None:
    """Push a model's folder to the hub, with the results of its evaluation on the card."""
    model = store.folder(node) / "model"
    card = (model / "README.md").read_text(encoding="utf-8")
    if evaluation and store.find(evaluation):
        store.verify(store.folder(evaluation))
        results = name_control(read_results(store.folder(evaluation)))
        card += evaluation_section(results, config_of(evaluation)["confidence"])
    else:
        log.info("The card has no results, as the model is not evaluated: stage=eval does it.")
    address = hub.push_folder(model, str(cfg.repo), cfg.private, f"Plumbline {node}", card)
    log.info("Pushed to %s", address)


def publish_dataset(cfg: Export, nodes: Sequence[Node], store: Store) -> None:
    """Write the dataset of these nodes to `outputs/export/`, and push it if `export.repo` is set."""
    name = f"dataset-{content_id([node.fingerprint for node in nodes])[:12]}"
    folder = store.root / "export" / name
    with store.lock("export", name):  # a second export waits for the first
        write_dataset_folder(folder, name, nodes, store)
    log.info("The dataset: %s", folder)
    if cfg.repo:
        message = f"Plumbline {name}"
        address = hub.push_folder(folder, cfg.repo, cfg.private, message, kind="dataset")
        log.info("Pushed to %s", address)


def write_dataset_folder(folder: Path, name: str, nodes: Sequence[Node], store: Store) -> None:
    tables, unused_demonstrations = collect_tables(nodes, store.folder)
    if not tables:
        raise UserError(
            "export.format=dataset: this run has no pairs, labels or demonstrations to export."
        )
    draft = folder.with_suffix(".partial")
    remove(draft)
    for configuration, parts in tables.items():
        (draft / configuration).mkdir(parents=True)
        for split, table in parts.items():
            pq.write_table(table, draft / configuration / f"{split}.parquet")
    lineage = [store.folder(node) for node in in_build_order([*nodes])]
    manifests = [manifest_of(each) for each in lineage if each.exists()]
    card = dataset_card(f"Plumbline {name}", tables, unused_demonstrations, manifests)
    (draft / "README.md").write_text(card, encoding="utf-8")
    replace_folder(draft, folder)


def collect_tables(nodes: Sequence[Node], folder_of: Callable[[Node], Path]) -> tuple[Tables, int]:
    """Return the tables by configuration and split, and the number of demonstrations that are left out."""
    by_configuration: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    unused_demonstrations = 0
    for node in nodes:
        if node.stage == "pairs":
            pairs = with_origins(folder_of, node, PREFERENCE_COLUMNS)
            # TRL's trainers would use a column called `margin`
            by_configuration["preferences"].append(
                pairs.rename_columns({"margin": "score_difference"})
            )
        elif node.stage == "unpaired":
            by_configuration["unpaired"].append(with_origins(folder_of, node, UNPAIRED_COLUMNS))
        else:
            table, unused = demonstrations(pq.read_table(folder_of(node) / "examples.parquet"))
            by_configuration["demonstrations"].append(table)
            unused_demonstrations += unused
    tables = Tables()
    for name, of_rounds in by_configuration.items():
        for split in SPLITS:
            rows = [table.filter(pc.equal(table["split"], split)) for table in of_rounds]
            if any(map(len, rows)):
                tables.setdefault(name, {})[split] = pa.concat_tables(rows).drop_columns("split")
    return tables, unused_demonstrations


def with_origins(folder_of: Callable[[Node], Path], node: Node, columns: list[str]) -> pa.Table:
    """Return columns of a table of judged completions, and the origins of its prompts."""
    table = pq.read_table(folder_of(node) / f"{node.stage}.parquet", columns=columns)
    prompts = pq.read_table(folder_of(node.inputs["judged"]) / "prompts.parquet")
    row_of_prompt = pc.index_in(table["prompt_id"], value_set=prompts["id"].combine_chunks())
    for name in ORIGIN_COLUMNS:
        table = table.append_column(name, prompts[name].take(row_of_prompt))
    return table


def demonstrations(examples: pa.Table) -> tuple[pa.Table, int]:
    """Return examples with TRL's columns for SFT, prompt and completion, and the number of those that have none: plain
    text, or an untrained last answer. TRL trains on every completion."""
    is_sft_split = pc.is_in(examples["split"], value_set=pa.array([*SFT_SPLITS]))
    answered = examples.filter(pc.and_(is_sft_split, pc.is_valid(examples["reference"])))
    is_last_answer_trained = [not turns or turns[-1] for turns in answered["trained"].to_pylist()]
    trained = answered.filter(pa.array(is_last_answer_trained, pa.bool_()))
    has_prompt = pc.greater(pc.list_value_length(trained["messages"]), 0)  # plain text has none
    rows = trained.filter(has_prompt)
    answers = [[{"role": "assistant", "content": text}] for text in rows["reference"].to_pylist()]
    splits = [SFT_SPLITS[split] for split in rows["split"].to_pylist()]
    columns = {
        "id": rows["id"],
        "prompt": rows["messages"],
        "completion": pa.array(answers, MESSAGES),
    }
    columns |= {name: rows[name] for name in ORIGIN_COLUMNS}
    columns["split"] = pa.array(splits, pa.string())
    unused = len(answered) - len(rows)
    return pa.table(columns), unused


def dataset_card(
    title: str, tables: Tables, unused_demonstrations: int, lineage: list[Manifest]
) -> str:
    """Return the `README.md` of a dataset. `unused_demonstrations`: the number of those that are left out; `lineage`: the
    manifests of all nodes that it was made from."""
    rows = count_rows_by_origin(tables)
    configs: list[dict[str, Any]] = [{"config_name": name, "data_dir": name} for name in tables]
    configs[0]["default"] = True
    header = DatasetCardData(
        configs=configs,
        license=hub_names_of_licences({licence for _, licence, _ in rows}),
        task_categories=["text-generation"],
        tags=["plumbline", "trl", *tables],
    )
    text = render(
        DATASET_CARD,
        cell=escape_cell,
        header=header.to_yaml(),
        title=title,
        tables=tables,
        splits=[split for split in SPLITS if split in ChainMap(*tables.values())],
        trainers={name: trainers_of(reads) for name, reads in TABLES.items()},
        unused=unused_demonstrations,
        rows=rows,
        origins=sorted({origin[:2] for origin in rows}),
        manifests=lineage,
        bases=[source_name(m["config"]) for m in lineage if m["stage"] == "base"],
    )
    return visible(text, "\n\t")


def count_rows_by_origin(tables: Tables) -> Counter[tuple[str, str, str]]:
    """Return the number of rows by source, licence and configuration."""
    rows = Counter[tuple[str, str, str]]()
    for name, parts in tables.items():
        for table in parts.values():
            licences = table["licence"].to_pylist()
            for source, licence in zip(table["source"].to_pylist(), licences, strict=True):
                rows[source, licence or UNKNOWN, name] += 1
    return rows


def hub_names_of_licences(licences: set[str]) -> list[str] | None:
    """Return licences by the hub's names, with `other` for one of another name; None if none is stated."""
    if licences == {UNKNOWN}:
        return None
    names = set[str]()
    for licence in licences:
        name = licence.strip().lower().replace(" ", "-")
        if licence == UNKNOWN:
            names.add("unknown")
        elif name in HUB_LICENCES:
            names.add(name)
        else:
            names.add("other")
    return sorted(names)
