"""Real data through the whole chain, on the embedded model: `python -m tests.bench.real_data [OUTPUTS]`.

1. SFT on Alpaca rows mixed with the generated tasks, then everything after it.
2. DPO on an existing preference set (`label=dataset`) instead of sampled candidates.

Prints the key figures of every node. Needs the shared data beside the checkout; takes about an hour on two cores.
"""

import json
import logging
import subprocess
import sys

from tests.helpers import DATA, ROOT

CHAINS = {
    "alpaca": [f"data.sources=[{{path: {DATA}/sft/alpaca_8k.jsonl.gz, rows: 1100}}]"],
    "preferences": [
        "label=dataset",
        f"label.path={DATA}/formats/lf_dpo_en_demo.json.gz",
        "dpo.max_length=512",
        "dpo.max_dropped=0.9",
        "dpo.epochs=1",
        "dpo.runtime.micro_batch=1",
    ],
}


def main(outputs: str) -> None:
    for name, overrides in CHAINS.items():
        command = [sys.executable, "run.py", "tracker=none", f"outputs={outputs}", *overrides]
        subprocess.run(command, cwd=ROOT, check=True)
        logging.info("== %s", name)
        for link in sorted((ROOT / outputs / "latest").iterdir()):
            manifest = json.loads((link / "manifest.json").read_text())
            metrics = manifest["metrics"]
            logging.info(
                "%10s %7.1f s  %s", manifest["stage"], manifest["wall_seconds"], metrics["summary"]
            )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(sys.argv[1] if len(sys.argv) > 1 else "outputs")
