"""DPO on pairs that a coin has turned, which must not help: `python -m tests.bench.coin [OUTPUTS]`.

Takes SFT, pairs and answers of the chain that OUTPUTS was last used for, and writes nothing into the store's nodes.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

from stages import answer, cli, dpo, evaluate, hardware
from stages.store import Work, read_manifest
from tests.helpers import ROOT, settings, turned


def main(outputs: Path) -> None:
    cfg = settings(f"outputs={outputs}")
    cli.caches(outputs)
    hardware.resolve_precision(cfg)
    manifest = read_manifest((outputs / "latest/eval").resolve())
    assert manifest is not None
    inputs = {role: outputs / i["stage"] / i["fingerprint"] for role, i in manifest["inputs"].items()}
    latest = {stage: (outputs / "latest" / stage).resolve() for stage in ("pairs", "reference")}
    with tempfile.TemporaryDirectory(dir=outputs / "cache") as scratch:
        folder = Path(scratch)
        given = {"policy": inputs["reference"], **turned(latest["pairs"], latest["reference"], folder, seed=0)}
        for name in ("dpo", "answer", "eval"):
            (folder / name).mkdir()
        dpo.run(cfg.dpo, given, Work(folder / "dpo", lambda m, s: None))
        asked = {"model": folder / "dpo", "data": inputs["data"]}
        answer.run(cfg.answer, asked, Work(folder / "answer", lambda m, s: None))
        roles = {role: inputs[role] for role in ("data", "reference", "base", "sft")}
        roles |= {"policy": folder / "dpo", "dpo": folder / "answer"}
        evaluate.run(cfg.eval, roles, Work(folder / "eval", lambda m, s: None))
        results = json.loads((folder / "eval" / "results.json").read_text())
    logging.info("%s KL %.3f nats per token.", results["verdict"], results["kl"]["per_token"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "outputs"))
