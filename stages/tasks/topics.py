"""Topics of open requests: the groups of `topics.yaml`."""

from pathlib import Path

import yaml

GROUPS = {
    name: [" ".join(topic.split()) for topic in block.split("|")]
    for name, block in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}
GROUPS["IDEAS"] = GROUPS["SKILLS"] + GROUPS["GOALS"]
