"""KTO in whole runs: a file of thumbs, an arm beside DPO, a killed training, and two processes."""

import json

from tests.helpers import Chain, build, nodes

LINE = ("stage=kto", "align=kto", "kto.batch_size=8")


def test_an_arm_shares_the_candidates_and_labels_of_dpo(chain: Chain) -> None:
    wired = nodes(chain.root, "arms=[kto]")
    assert wired["unpaired_kto"].inputs["judged"].fingerprint == wired["label"].fingerprint
    alone = nodes(chain.root, "align=kto")
    assert wired["kto"].fingerprint == alone["kto"].fingerprint
    build(chain.root, "stage=report", "arms=[kto]")
    results = json.loads((chain.folder("eval", "arms=[kto]") / "results.json").read_text())
    assert {"kto", "policy"} <= results["models"].keys() and "kto-sft" in results["differences"]
