"""Tests of the helpers: the quick composition of a configuration equals Hydra's."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from stages.cli import compose
from tests import helpers
from tests.helpers import TINY, composed, composed_by_hydra, forget_compositions, inside, slow_but

LINES = [
    "seed=7 seeds=[1,2] dpo.beta=0.5 dpo.loss_type=[sigmoid,sft] dpo.loss_weights=[1.0,0.5] sft.epochs=2",
    "sft.trainer.weight_decay=0.1 dpo.trainer.lr_scheduler_kwargs={power:2} sft.trainer.optim=sgd",
    "label=judge label.endpoints=[{base_url:'http://127.0.0.1:1',model:x}] sample=openai",
    "model.random_init.hidden_size=32 sft.learning_rate=0.1 dpo.adapter=lora dpo.lora.target_modules=[q_proj]",
    "data.sources=[{path:README.md,splits:{sft:0.5}}] outside=[{path:README.md}] sft.seed=${seed}",
    "label=dataset label.path=x label.columns={prompt:question} stage=label label.own={file:a.py,name:A}",
    "model.path=someone/other dpo.learning_rate=1e-3 dpo.adapter=lora",
    "launch=fsdp launch.processes=2 control=true eval.models={} precision=fp32",
]


@pytest.mark.parametrize("line", slow_but(LINES, *LINES[2:6]))
def test_a_quick_composition_is_hydras(line: str) -> None:
    overrides = (*TINY, *line.split())
    whole = composed_by_hydra(*compose.normalise(list(overrides)))
    quick = composed(*overrides)
    assert quick == whole
    assert OmegaConf.to_yaml(quick) == OmegaConf.to_yaml(whole)
    assert OmegaConf.to_object(quick) == OmegaConf.to_object(whole)
    assert OmegaConf.is_struct(quick) is OmegaConf.is_struct(whole) is True


@pytest.mark.parametrize("override", ["dpo.bata=1", "dpo.beta=x", "dpo.lora=5", "seeds=2"])
def test_what_hydra_refuses_is_refused_in_its_words(override: str) -> None:
    forget_compositions()
    with pytest.raises(HydraException):
        composed(*TINY, override)


@pytest.mark.slow
@pytest.mark.parametrize("line", [("stage=plan",), ("stage=data", "dpo.beta=0.1,0.2", "-m")])
def test_with_few_compositions_a_command_runs_with_what_hydra_composes(
    line: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare what Hydra saves of each job: its configuration and its overrides, those of Hydra's own included."""

    def saved(root: Path) -> list[str]:
        ran = inside(*TINY, *line, f"outputs={root}")
        assert ran.returncode == 0, ran.stderr
        texts = [
            path.read_text()
            for path in sorted(root.rglob(".hydra/*.yaml"))
            if path.name != "hydra.yaml"
        ]
        return [text.replace(str(root), "ROOT") for text in texts]

    quick = saved(tmp_path / "quick")
    monkeypatch.setattr(helpers, "few_compositions", nullcontext)
    assert quick == saved(tmp_path / "whole") != []
