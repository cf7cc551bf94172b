"""The acts of open requests, each with its wordings and topics, from `topics.yaml`."""

from pathlib import Path

import yaml


def parts(block: str) -> list[str]:
    """Return the parts of a block that are separated by "|", each on one line."""
    return [" ".join(part.split()).replace(r"\n", "\n") for part in block.split("|")]


READ = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
TOPICS = {name: parts(block) for name, block in READ["topics"].items()}
TOPICS["IDEAS"] = TOPICS["SKILLS"] + TOPICS["GOALS"]
ACTS = {name: (tuple(parts(act["wordings"])), TOPICS[act["topics"]]) for name, act in READ["acts"].items()}
