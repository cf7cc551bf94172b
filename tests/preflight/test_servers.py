"""Check that an API key in an endpoint's address or `extra` is refused with the setting's name, without the key."""

from pathlib import Path

import pytest

from stages.config.errors import UserError
from stages.preflight import servers
from tests.helpers import SECRET, TINY, for_hydra, inside, needing, refused, settings

SAMPLER = (
    "sample=openai",
    "sample.endpoint.model=x",
    "sample.endpoint.base_url=http://127.0.0.1:1/v1",
)
EXTRA = "sample.endpoint.extra"
BASE = "sample.endpoint.base_url"
OPENAI = f"sk-proj-{SECRET}"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJ{SECRET}"


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        (BASE, f"{BASE}=https://me:{SECRET}@host/v1"),
        (BASE, f"{BASE}='https://host/v1?api_key={SECRET}'"),
        (BASE, f"{BASE}='https://host/v1#{SECRET}'"),
        (BASE, f"{BASE}=https://host/{OPENAI}/v1"),
        (f"{EXTRA}.api_key", f"{EXTRA}.api_key={SECRET}"),
        (f"{EXTRA}.headers.Authorization", f"{EXTRA}.headers={{Authorization:'{SECRET}'}}"),
        (f"{EXTRA}.providers[0].client_secret", f"{EXTRA}.providers=[{{client_secret:{SECRET}}}]"),
        (f"{EXTRA}.user", f"{EXTRA}.user={OPENAI}"),
        (f"{EXTRA}.user", f"{EXTRA}.user={JWT}"),
        (f"{EXTRA}.user", f"{EXTRA}.user=of-{SECRET} sample.endpoint.api_key_env=A_KEY"),
    ],
)
def test_a_key_in_a_setting_is_refused_by_the_settings_name(
    key: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", SECRET)
    line = refused(*TINY, *SAMPLER, *typed.split(maxsplit=1))
    assert line.startswith(f"{key} holds a") and "api_key_env=NAME" in line and SECRET not in line


@pytest.mark.parametrize(
    "typed",
    [
        f"label.endpoints=[{{base_url: a, extra: {{api_key: {SECRET}}}}}],[{{base_url: b}}]",
        f"label.endpoints=[{{api_key_env: '{SECRET}'}}],[{{api_key_env: A_KEY}}]",
        f"label.own.options={{password: {SECRET}}},{{password: none}}",
        f"{EXTRA}.api_key={SECRET},other",
    ],
)
def test_a_key_in_a_value_of_a_sweep_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match=" holds a key "):
        for_hydra(typed, "-m")


@pytest.mark.parametrize(
    "typed",
    [
        "model.path=hf-internal-testing/tiny-random-LlamaForCausalLM",
        "sample.endpoint.api_key_env=my_key",
        "label.own.options.model=hf-internal-testing/tiny-random-LlamaForCausalLM",
        "label.own.options.key=answer",
        "sample.endpoint.extra.note='Basic instructions'",
        "data.sources=[{path: 'hf://datasets/hf-internal-testing/fixtures-of-tests'}]",
    ],
)
def test_a_name_that_looks_like_a_key_is_taken(typed: str) -> None:
    assert typed in [argument.lstrip("+") for argument in for_hydra(typed)]


def test_a_recipes_secret_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"defaults: [tiny]\nsample: {{endpoint: {{extra: {{auth: {{token: {SECRET}}}}}}}}}\n"
    )
    ran = inside("stage=data", f"recipe={recipe}", f"outputs={tmp_path / 'outputs'}")
    assert ran.returncode and "sample.endpoint.extra.auth.token holds a" in ran.stderr
    assert SECRET not in ran.stdout + ran.stderr and not (tmp_path / "outputs").exists()


def test_a_budget_needs_a_limit_of_an_answer() -> None:
    budget, unlimited = "sample.endpoint.budget.tokens=1000", f"{EXTRA}.max_tokens=null"
    assert f"{EXTRA}.max_tokens=null" in refused(*TINY, *SAMPLER, budget, unlimited)
    servers.validate_endpoints(settings(*TINY, *SAMPLER, unlimited))
    servers.validate_endpoints(
        settings(*TINY, *SAMPLER, budget, unlimited, f"{EXTRA}.max_completion_tokens=64")
    )


@pytest.mark.parametrize(
    "argument",
    [
        f"{BASE}=http://user:{SECRET}@127.0.0.1:1/v1",
        needing("shared_store", f"store.remote=s3://user:{SECRET}@bucket/prefix"),
        f"{EXTRA}={{routing: {{x-api-key: '{SECRET}'}}}}",
        f"label.endpoints=[{{base_url: 'http://h/v1', model: m, api_key_env: {SECRET.lower()}}}]",
    ],
)
def test_a_typed_secret_is_refused_before_anything_is_written(
    argument: str, tmp_path: Path
) -> None:
    ran = inside("stage=data", *TINY, f"outputs={tmp_path / 'outputs'}", argument)
    assert (
        ran.returncode
        and "which would be stored" in ran.stderr
        and SECRET not in ran.stdout + ran.stderr
    )
    assert not (tmp_path / "outputs").exists()
