"""The settings of the last run, for a plan or a report that is typed without any."""

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from stages.cli.spelling import typed_values
from stages.config.choices import Command
from stages.config.errors import UserError
from stages.config.installation import arguments_of
from stages.config.schema import Target
from stages.pipeline import provenance
from stages.store.manifest import manifest_of
from stages.store.sealed_json import OUTPUTS
from stages.store.store import Store

COMMANDS_ON_LAST_RUN = (Command.plan, Target.report)
# Keys and blocks that say nothing of which run a command is about
SELECTING_NO_RUN = {
    *("stage", "outputs", "tracker", "upstream", "rebuild", "store", "launch", "hydra"),
    *("plan", "report", "chat", "export", "gate"),
}
USER_CODE = re.compile(r"\+*[\w.]+\.own[.=]")


def selects_run(keys: Iterable[str]) -> bool:
    """Return whether one of these typed keys says which run a command is about."""
    blocks = {re.split("[./]", key)[0] for key in keys}
    return not blocks <= SELECTING_NO_RUN


def with_last_run(line: list[str]) -> list[str]:
    """Return a line without settings followed by those of the store's last run, and any other line as it is.
    Raise UserError if the last run has code of the user's, which only a typed line may name."""
    typed = typed_values(line)
    has_option = len(typed) < len(line)
    if typed.get("stage") not in COMMANDS_ON_LAST_RUN or has_option or selects_run(typed):
        return line
    from stages.commands.finished_run import ENDS, newest_end

    root = typed.get("outputs", "").strip("'\"") or os.environ.get(OUTPUTS, "outputs")
    store = Store(Path(root))
    end = newest_end(store, *ENDS, Target.sft)
    if not end:
        return line
    recorded = arguments_of(manifest_of(store.folder(end)).get("command", ""))
    run_settings = [word for word in recorded if selects_run(typed_values([word]))]
    if not run_settings:  # it was the demo
        return line
    command = provenance.command(typed["stage"], [*line, *run_settings])
    if any(USER_CODE.match(word) for word in run_settings):
        raise UserError(f"{line[0]}: the last run has code of yours. Type its settings: {command}")
    sys.stdout.write(f"No settings are typed, so these are of the last run ({end}): {command}\n")
    return [*line, *run_settings]
