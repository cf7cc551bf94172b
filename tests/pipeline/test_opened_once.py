"""Tests of open models: a model that answers several sets is loaded once, and freed before other stages."""

import importlib
import json
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.models import loading
from stages.store.records import Candidate, load
from tests.helpers import Chain, build

pytestmark = pytest.mark.extended

SAMPLING = ("sample", "answer")
OTHERS = ("label", "pairs", "reference", "dpo", "eval")


class Watch:
    """A record of the models that each stage loads, and of the number of earlier models alive when a stage starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = ""
        self.loads = Counter[str]()
        self.models = list[weakref.ref[Any]]()
        self.alive = dict[str, int]()
        for name in (*SAMPLING, *OTHERS):
            module = importlib.import_module(f"stages.{name}")
            monkeypatch.setattr(module, "run", self.entering(name, module.run))
        real = loading.AutoModelForCausalLM.from_pretrained
        monkeypatch.setattr(
            loading.AutoModelForCausalLM,
            "from_pretrained",
            lambda folder, **options: self.noted(real(folder, **options)),
        )

    def entering(self, name: str, run: Any) -> Any:
        def entered(*arguments: Any) -> Any:
            self.now = name
            if name in OTHERS:
                self.alive[name] = sum(model() is not None for model in self.models)
            return run(*arguments)

        return entered

    def noted(self, loaded: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
        """Record a loaded model. `report` lists missing weights."""
        self.loads[self.now] += 1
        self.models.append(weakref.ref(loaded[0]))
        return loaded


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch, no_collector: None) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture
def outside(tmp_path: Path) -> str:
    rows = [
        {"prompt": f"Is {word} a colour? yes or no", "completion": "yes"}
        for word in ("red", "blue", "green")
    ]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"outside=[{{path: {tmp_path / 'set.jsonl'}, check: label}}]"


def test_a_model_that_answers_two_sets_is_loaded_once_and_answers_as_it_does_alone(
    chain: Chain, watch: Watch, outside: str
) -> None:
    override = "answer.max_new_tokens=11"
    build(chain.root, "stage=eval", override, outside)
    assert watch.loads["answer"] == 3, "base, SFT and DPO, each asked two sets"
    assert watch.alive == {"eval": 0}
    second = chain.folder("answer_sft", override) / "answers.parquet"  # after the outside set
    together = load(second, Candidate)
    build(chain.root, "stage=answer", override, "rebuild=answer")
    assert load(second, Candidate) == together
