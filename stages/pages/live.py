"""The page of a run, from its first second: the chain with its states, curves and answers so far. It is written again
after every node and every half minute, and reloads itself."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from stages.config.blocks.objective import Training
from stages.config.errors import LimitReached
from stages.config.stage_table import Target
from stages.pages import plots, runs
from stages.pages.environment import environment
from stages.pages.first_screen import Step, step_of
from stages.pages.glossary import STEPS
from stages.store import safe_files
from stages.store.manifest import read_manifest
from stages.store.node import Node, in_build_order
from stages.store.store import Store
from stages.store.workspace import Progress, Sample, clock, read_curves, read_samples

log = logging.getLogger(__name__)

# Takes the running node, its progress and the nodes that wait; returns the seconds left, or nan, and the nodes that
# these do not count, as nobody knows their time.
SecondsLeft = Callable[[Node, Progress, list[Node]], tuple[float, list[Node]]]
REPORT = "report.html"
FIRST_FORECAST = 24.0  # seconds before the version that first forecasts: the demo has then trained for some steps
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
        seconds_left: SecondsLeft,
        sweep: str = "",
        job: str = "",
    ):
        self.store, self.command, self.recipe = store, command, recipe
        self.sweep, self.job = sweep, job
        self.seconds_left, self.forecast = seconds_left, ""
        self.nodes = in_build_order(targets)
        self.names = {node.fingerprint: name for name, node in [*nodes.items()][::-1]}
        self.target = targets[-1]
        self.states = dict.fromkeys((node.fingerprint for node in self.nodes), "waiting")
        self.began = dict[str, float]()
        self.started, self.error = time.time(), ""
        self.is_written = True  # False while the last attempt has failed
        self.has_warned = False
        self.stopped = threading.Event()
        self.writer = threading.Thread(target=self.keep_writing, daemon=True)

    @property
    def file(self) -> Path:
        return self.store.root / runs.PAGES / f"{self.target.stage}-{self.target.fingerprint}.html"

    @property
    def address(self) -> Path:
        """The place to open: for a run to the report the same as always, `outputs/report.html`."""
        to_report = self.target.stage == Target.report
        return self.store.root / REPORT if to_report else self.file

    def __enter__(self) -> "LivePage":
        self.show()
        self.writer.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.stopped.set()
        self.writer.join()
        if error is not None:
            self.error = " ".join(str(error).split()) or type(error).__name__
            ended = "stopped" if isinstance(error, LimitReached) else "failed"
            self.states = {
                key: ended if state == "running" else state for key, state in self.states.items()
            }
        self.show(running=False)

    def keep_writing(self) -> None:
        wait = FIRST_FORECAST
        while not self.stopped.wait(wait):
            self.attempt(self.look_ahead)
            self.show(listed=False)
            wait = EVERY

    def look_ahead(self) -> None:
        """Forecast the time left; the first time that it is known, log it too."""
        states = [self.states[node.fingerprint] for node in self.nodes]
        progress = Progress.current
        if "running" not in states or progress is None:
            return
        running = self.nodes[states.index("running")]
        waiting = [
            node for node, state in zip(self.nodes, states, strict=True) if state == "waiting"
        ]
        seconds, unknown = self.seconds_left(running, progress, waiting)
        if math.isnan(seconds):
            return
        forecast = f"The whole run: about {clock(seconds)} left"
        if unknown:
            titles = ", ".join(dict.fromkeys(map(self.title_of, unknown)))
            forecast = f"The whole run: more than {clock(seconds)} left, and the time of {titles} is not known here yet"
        if not self.forecast:
            log.info("%s", forecast)
        self.forecast = f"{forecast}."

    def tell(self, node: Node, state: str) -> None:
        """Note that a node is running, done or reused, and write the page."""
        if state == "running":
            self.began[node.fingerprint] = time.monotonic()
        self.states[node.fingerprint] = state
        self.show()

    def show(self, running: bool = True, listed: bool = True) -> None:
        """Write the page, and the lists of runs."""
        self.is_written = self.attempt(partial(self.write, running, listed))

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do a part of the work for the page, and return whether it succeeded. A run goes on without its page, after a
        warning at the first failure."""
        try:
            work()
        except Exception as error:
            problem = safe_files.page_problem(error, self.store.root)
            if problem and not self.has_warned:
                log.warning("warning: the page is not written, and the run goes on. %s", problem)
            elif not self.has_warned:
                log.exception("warning: the page cannot be drawn. The run goes on without it:")
            self.has_warned = True
            return False
        return True

    def write(self, running: bool, listed: bool) -> None:
        """Write the page, and the lists of runs. The finished page of a report is the report."""
        sentence = self.sentence(running)
        report = self.store.folder(self.target) / REPORT
        finished = not running and not self.error and self.target.stage == Target.report
        if finished and report.exists():
            self.file.unlink(missing_ok=True)
            content, place = report.read_bytes(), report
        else:
            content, place = self.render(running, sentence).encode(), self.file
            safe_files.write_in_folder(self.file, content)
        if self.address != self.file:
            safe_files.write_in_folder(self.address, runs.link_from_root(content))
        if listed:
            runs.write_entry(self.store.root, self.file, {
                "page": str(place.relative_to(self.store.root)),
                "recipe": self.recipe,
                "command": self.command,
                "started": self.started,
                "sentence": sentence,
                "running": running,
                "sweep": self.sweep,
                "job": self.job,
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
                forecast=self.forecast,
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
            return str(metrics["summary"])
        for node in self.nodes:
            if self.states[node.fingerprint] == "running":
                return f"Running: {self.title_of(node)}"
        return "Starting"

    def title_of(self, node: Node) -> str:
        """Return the title of a node's step, or its stage if it is no step of the chain."""
        step = self.step_of(node)
        return STEPS[step][0] if step in STEPS else node.stage

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
                (word for word in ("failed", "stopped", "running", "waiting") if word in states),
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
            if isinstance(node.config, Training) and plots.panels(node.stage)
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
