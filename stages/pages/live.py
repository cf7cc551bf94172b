"""The page of a run, from its first second: the chain with its states, curves and answers so far. It is written again
after every node and every half minute, and reloads itself. A list of all runs, `index.html`, stands beside it."""

import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from stages.config.blocks.training import Training
from stages.config.schema import Target
from stages.pages import plots
from stages.pages.environment import environment
from stages.pages.first_screen import STEPS, Step, step_of
from stages.store import safe_files
from stages.store.manifest import read_manifest
from stages.store.node import Node, in_build_order
from stages.store.sealed_json import read_note, require_keys, write_note
from stages.store.store import Store
from stages.store.workspace import Progress, Sample, clock, read_curves, read_samples

PAGES, INDEX, REPORT = "pages", "index.html", "report.html"
EVERY = 30.0  # seconds between two versions
RELOADED = 10  # seconds after which a browser loads the page again
SILENT = 3 * EVERY  # seconds without a new version, after which a run was probably stopped
MOST_ANSWERS = 3


class LivePage(AbstractContextManager["LivePage"]):
    """The page of one command, in `outputs/pages/`. That of the last run to a report is also `outputs/report.html`."""

    def __init__(
        self,
        store: Store,
        nodes: Mapping[str, Node],
        targets: list[Node],
        command: str,
        recipe: str,
    ):
        self.store, self.command, self.recipe = store, command, recipe
        self.nodes = in_build_order(targets)
        self.names = {node.fingerprint: name for name, node in [*nodes.items()][::-1]}
        self.target = targets[-1]
        self.states = dict.fromkeys((node.fingerprint for node in self.nodes), "waiting")
        self.began = dict[str, float]()
        self.started, self.error = time.time(), ""
        self.stopped = threading.Event()
        self.writer = threading.Thread(target=self.keep_writing, daemon=True)

    @property
    def file(self) -> Path:
        return self.store.root / PAGES / f"{self.target.stage}-{self.target.fingerprint}.html"

    @property
    def address(self) -> Path:
        """The place to open: for a run to the report the same as always, `outputs/report.html`."""
        to_report = self.target.stage == Target.report
        return self.store.root / REPORT if to_report else self.file

    def __enter__(self) -> "LivePage":
        self.write()
        self.writer.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.stopped.set()
        self.writer.join()
        if error is not None:
            self.error = " ".join(str(error).split()) or type(error).__name__
            self.states = {
                key: "failed" if state == "running" else state for key, state in self.states.items()
            }
        self.write(running=False)

    def keep_writing(self) -> None:
        while not self.stopped.wait(EVERY):
            self.write()

    def tell(self, node: Node, state: str) -> None:
        """Note that a node is running, done or reused, and write the page."""
        if state == "running":
            self.began[node.fingerprint] = time.monotonic()
        self.states[node.fingerprint] = state
        self.write()

    def write(self, running: bool = True) -> None:
        """Write the page, and the list of runs. The finished page of a report is the report."""
        sentence = self.sentence(running)
        report = self.store.folder(self.target) / REPORT
        finished = not running and not self.error and self.target.stage == Target.report
        if finished and report.exists():
            self.file.unlink(missing_ok=True)
            content, place = report.read_bytes(), report
        else:
            content, place = self.render(running, sentence).encode(), self.file
            safe_files.write_if_allowed(self.file, content)
        if safe_files.write_if_allowed(self.address, content):
            write_entry(self.store.root, self.file, {
                "page": str(place.relative_to(self.store.root)),
                "recipe": self.recipe,
                "command": self.command,
                "started": self.started,
                "sentence": sentence,
            })  # fmt: skip

    def render(self, running: bool, sentence: str) -> str:
        return (
            environment()
            .get_template("live.html.jinja")
            .render(
                running=running,
                sentence=sentence,
                command=self.command,
                recipe=self.recipe,
                written=time.time(),
                written_at=f"{datetime.now():%H:%M:%S}",
                silent=SILENT,
                reloaded=RELOADED,
                chain=self.chain(),
                curves=self.curves(),
                answers=self.answers(),
            )
        )

    def sentence(self, running: bool) -> str:
        if self.error:
            return f"Stopped: {self.error}"
        if not running:
            manifest = read_manifest(self.store.folder(self.target))
            metrics = manifest["metrics"] if manifest else {"summary": "Finished."}
            return str(metrics.get("sentence", metrics["summary"]))
        for node in self.nodes:
            if self.states[node.fingerprint] == "running":
                title = STEPS[self.step_of(node)][0] if self.step_of(node) in STEPS else node.stage
                return f"Running: {title}"
        return "Starting"

    def step_of(self, node: Node) -> str:
        return step_of(self.names.get(node.fingerprint, ""), node.stage)

    def chain(self) -> list[Step]:
        """Return the steps in the order of their stages, with what each has made and its time, or its progress."""
        shown = list[Step]()
        for stage, (title, *_) in STEPS.items():
            nodes = [node for node in self.nodes if self.step_of(node) == stage]
            if not nodes:
                continue
            states = [self.states[node.fingerprint] for node in nodes]
            state = next(
                (word for word in ("failed", "running", "waiting") if word in states),
                "reused" if {*states} == {"reused"} else "done",
            )
            if state == "waiting" and {*states} != {"waiting"}:
                state = "running"
            progress = Progress.current
            made = progress.line() if state == "running" and progress else state
            seconds = sum(map(self.seconds, nodes))
            shown.append(Step(title, made, clock(seconds) if seconds else "", state))
        return shown

    def seconds(self, node: Node) -> float:
        """Return how long a node has taken here; 0 for one that is waiting or reused."""
        state = self.states[node.fingerprint]
        if state == "running":
            return time.monotonic() - self.began[node.fingerprint]
        manifest = read_manifest(self.store.folder(node)) if state == "done" else None
        return float(manifest["wall_seconds"]) if manifest else 0.0

    def place(self, node: Node) -> Path:
        """Return the folder of a node, published or not."""
        folder = self.store.folder(node)
        return folder if folder.exists() else self.store.partial(node)

    def curves(self) -> list[plots.LineChart]:
        """Return the charts of all trainings that have begun."""
        return [
            chart
            for node in self.nodes
            if isinstance(node.config, Training) and node.stage in plots.PANELS
            for chart in plots.training(
                node.stage, STEPS[self.step_of(node)][0], read_curves(self.place(node))
            )
        ]

    def answers(self) -> list[Sample]:
        """Return the last answers of the model in training, or of the last one that was trained."""
        for node in reversed(self.nodes):
            if isinstance(node.config, Training) and (samples := read_samples(self.place(node))):
                last = {sample.id: sample for sample in samples}
                return [*last.values()][:MOST_ANSWERS]
        return []


def write_entry(root: Path, file: Path, entry: dict[str, Any]) -> None:
    """Note a run beside its page, and write the list of all runs whose pages are there, the last one first."""
    write_note(file.with_suffix(".json"), entry)
    notes = (read_note(each, require_keys(*entry)) for each in (root / PAGES).glob("*.json"))
    runs = [note for note in notes if note and (root / note["page"]).exists()]
    runs.sort(key=lambda run: -run["started"])
    for run in runs:
        run["date"] = f"{datetime.fromtimestamp(run['started']):%Y-%m-%d %H:%M}"
    page = environment().get_template("index.html.jinja").render(runs=runs)
    safe_files.write_if_allowed(root / INDEX, page)
