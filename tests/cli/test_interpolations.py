"""Check that no value of the environment enters a configuration, and which keys have the value of which."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stages.cli.interpolations import interpolated_keys, keys_with_value_of
from tests.helpers import TINY, inside, settings

SECRET = "hf_0123456789abcdefghij"
READING = [
    "dpo.beta=${oc.env:A_SECRET}",
    "dpo.beta=${oc.env:A_SECRET,0.1}",
    "tracker.group=x${oc.decode:${oc.env:A_SECRET}}",
    "tracker.group='${oc.env:${tracker.project}}' tracker.project=A_SECRET",
    "data.sources=[{path:README.md,columns:{prompt:['${oc.env:A_SECRET}']}}]",
    "data.form.system=insert data.form.system_prompts=['You_know_${oc.env:A_SECRET}.']",
    "hydra.run.dir=${outputs}/${oc.env:A_SECRET}",
    "hydra.job.env_set={COPY:'${oc.env:A_SECRET}'}",
    "tracker.group=${oc.env:A_SECRET} seed=1,2 -m",
]


@pytest.mark.extended
def test_no_value_of_the_environment_is_shown_or_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", SECRET)
    recipe = tmp_path / "reading.yaml"
    recipe.write_text("data: {form: {system_prompts: ['${oc.env:A_SECRET} $(printenv A_SECRET)']}}")
    for number, typed in enumerate([*READING, f"recipe={recipe}"]):
        outputs = tmp_path / str(number)
        tiny = TINY if "recipe" not in typed else TINY[1:]
        ran = inside(*tiny, "stage=plan", f"outputs={outputs}", *typed.split(" "))
        assert ran.returncode != 0 and "A_SECRET" in ran.stderr, typed
        texts = [ran.stdout, ran.stderr]
        texts += [file.read_text() for file in outputs.rglob("*") if file.is_file()]
        texts += map(str, outputs.rglob("*"))
        assert not [text for text in texts if SECRET in text], typed


def test_conf_reads_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(*TINY, "launch=ddp").launch.node_rank == 0
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("PLUMBLINE_OUTPUTS", "elsewhere")
    cfg = settings(*TINY, "launch=ddp", "launch.nodes=2")
    assert (cfg.launch.node_rank, cfg.outputs) == (1, "elsewhere")
    assert "A_SECRET" not in os.environ


def test_keys_have_the_values_of_others_directly_and_through_each_other() -> None:
    tree = {"a": {"b": "${c.d} and ${.e}", "e": 1}, "c": {"d": 2}, "f": ["${a.b}"], "g": "${..h}"}
    interpolated = interpolated_keys(OmegaConf.create(tree))
    assert interpolated == {"a.b": ["c.d", "a.e"], "f": ["a.b"], "g": ["h"]}
    assert keys_with_value_of("c.d", interpolated) == ["a.b", "f"]
    assert keys_with_value_of("c.other", interpolated) == []
