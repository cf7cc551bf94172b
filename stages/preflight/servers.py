"""Checks of endpoints: keys, packages, and no secret in the configuration."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

from stages.config.blocks.endpoints import SHORTEST_KEY, Endpoint
from stages.config.blocks.labels import Judge
from stages.config.blocks.sampling import OpenAI
from stages.config.errors import Errors, UserError, check_all
from stages.config.installation import install_command
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.store import Store

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of the environment
# The user, the password or the key in an address
CREDENTIALS = re.compile(
    r"://[^/\s'\"]*@|[?&][\w-]*(key|token|secret|password|sig|signature)=", re.IGNORECASE
)
# Names of settings that hold a key
SECRET_NAME = re.compile(
    r"(api|access|auth|private|secret|client|bearer|refresh)[-_ ]?(key|token|secret)"
    r"|authori[sz]ation|passw(or)?d|passphrase|credential|^(x[-_])?(auth|bearer|secret|token)$",
    re.IGNORECASE,
)
# Keys of OpenAI, Hugging Face and others, of Google, JWTs and headers. Names of models and files may begin like the
# first ones, but do not have twenty letters and digits in a row.
API_KEY = re.compile(
    r"\b(sk|pk|hf|gsk|xai|nvapi|ghp|glpat|r8|csk)[-_]([\w-]*[-_])?[A-Za-z0-9]{20,}"
    r"|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.eyJ|\b(Bearer|Basic) [\w+/=.~-]{20,}"
)


# called before Hydra, which writes all settings into the folder of the run
def refuse_secret(settings: Iterable[tuple[str, str]]) -> None:
    """Raise UserError for the first of the settings, keys and values, that holds a secret."""
    for key, value in settings:
        if holds_secret(key, value):
            raise secret_error(key)


def secret_error(key: str) -> UserError:
    return UserError(
        f"{key} holds a key or a password, which would be stored. Name an environment variable: api_key_env=NAME."
    )


def holds_secret(key: str, value: str) -> bool:
    """Return whether a setting holds a secret: in an address, in place of a variable's name, or in a free mapping."""
    name = key.rpartition(".")[2]
    if CREDENTIALS.search(value):
        return True
    if name == "api_key_env":
        variable_names = [word.strip("'\" ") for word in value.split(",")]  # several in a sweep
        return any(word and not VARIABLE_NAME.fullmatch(word) for word in variable_names)
    is_in_free_mapping = (".extra." in key or ".options." in key) and not name.endswith("_env")
    if is_in_free_mapping and SECRET_NAME.search(name):
        return True
    # the values of other settings, such as paths and models, may look like a key
    return (is_in_free_mapping or "://" in value) and API_KEY.search(value) is not None


def nested_texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of every text inside a setting."""
    if isinstance(value, dict):
        for name, inner_value in value.items():
            yield from nested_texts(inner_value, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, inner_value in enumerate(value):
            yield from nested_texts(inner_value, f"{key}[{i}]")
    elif isinstance(value, str) and value:
        yield key, value


def validate_endpoints(cfg: Config) -> None:
    """Raise one UserError for all endpoints that cannot work, or whose settings hold a key."""
    errors = Errors()
    for key, endpoint in cfg.endpoints.items():
        with errors:
            endpoint.check(key, cfg.limits.money)
        with errors:
            refuse_secret_of_endpoint(key, endpoint)
    errors.raise_all()


def refuse_secret_of_endpoint(key: str, endpoint: Endpoint) -> None:
    """Raise UserError for a secret in an endpoint's address or requests, also the key that the environment holds. A query
    or a fragment of an address counts as one."""
    api_key = os.environ.get(endpoint.api_key_env or "", "").strip()
    is_long_enough = len(api_key) >= SHORTEST_KEY
    base_url = str(endpoint.base_url)
    for setting, value in nested_texts({"base_url": base_url, "extra": endpoint.extra}, key):
        if holds_secret(setting, value) or (is_long_enough and api_key in value):
            raise secret_error(setting)
    has_query_or_fragment = "?" in base_url or "#" in base_url
    if has_query_or_fragment:
        raise secret_error(f"{key}.base_url")


def require_endpoints(node: Node, store: Store) -> None:
    """Raise UserError if an endpoint for candidates, or of a judge, lacks its package or its key."""
    block = node.config
    endpoints = dict[str, Endpoint]()
    if isinstance(block, Judge):
        key = f"{block.block}.endpoints"
        endpoints = {f"{key}[{i}]": each for i, each in enumerate(block.endpoints)}
    elif isinstance(block, OpenAI) and not block.own:
        endpoints = {f"{block.key}.endpoint": block.endpoint}
    check_all(partial(require_askable, key, each, store) for key, each in endpoints.items())


def require_askable(key: str, endpoint: Endpoint, store: Store) -> None:
    """Raise UserError if the package openai or the API key is missing, unless the store has cached replies of this model."""
    # imported here, as it loads pyarrow, which a plan does not need
    from stages.store.call_cache import Calls

    folder = store.root / "cache" / "calls"
    if Calls(folder, str(endpoint.base_url), str(endpoint.model)).path.exists():
        return  # cached replies may be all that the stage needs
    if find_spec("openai") is None:
        raise UserError(f"{key} needs the package openai: {install_command('endpoints')}.")
    variable = endpoint.api_key_env
    if variable and not os.environ.get(variable, "").strip():
        raise UserError(
            f"{key}.api_key_env={variable}: this environment variable is missing or empty. Set it: export {variable}=KEY"
        )
