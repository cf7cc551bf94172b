"""Checks of endpoints (address, price, no secret in the configuration) and of the address of the page for people."""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, urlsplit

from stages.config.blocks.endpoints import LIMITS, SHORTEST_KEY, Endpoint
from stages.config.blocks.labels import Judge
from stages.config.blocks.sampling import OpenAI
from stages.config.choices import Rubrics
from stages.config.errors import Errors, UserError, name_block
from stages.config.installation import install_command, read_beside
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.store import Store

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # the name of an environment variable
PORTS = {"http": 80, "https": 443}
LONGEST = 2000  # characters in an address
TEXTS = read_beside(__file__)
IN_ADDRESS = re.compile(
    r"://[^/\s'\"]*@|[?&][\w-]*(key|token|secret|password|sig|signature)=", re.IGNORECASE
)
KEY_NAME, KEY = (re.compile(TEXTS[name].replace("\n", "")) for name in ("key_name", "key"))
REQUEST_FIELDS = {"messages", "model", "stream", "n"}  # fields that every request sets itself


def refuse_secret(texts: Iterable[tuple[str, str]]) -> None:
    """Raise UserError for a setting with an API key, or with an address that holds a user, a password or a key. This
    must come before Hydra, which writes all settings into the folder of the run. `texts`: keys and values.

    A path, a model or a project may look like a key, so only URLs and values of free mappings are judged by their
    look."""
    for key, value in texts:
        is_free = re.search(r"\.(extra|options)\..*(?<!_env)$", key) is not None
        named = is_free and KEY_NAME.search(key.rpartition(".")[2]) is not None
        looks_so = (is_free or "://" in value) and KEY.search(value) is not None
        # of a sweep
        words = (
            [word.strip("'\" ") for word in value.split(",")] if key.endswith("api_key_env") else []
        )
        is_key = any(not NAME.fullmatch(word) for word in words if word not in ("", "null"))
        if named or is_key or looks_so or IN_ADDRESS.search(value):
            setting = (
                f"{'sample.endpoint.' if key.startswith('sample.endpoint') else ''}api_key_env"
            )
            way_out = f"Put it in an environment variable; {setting}=NAME names that of an endpoint"
            raise UserError(f"{key} holds a key or a password, which would be stored. {way_out}.")


def validate_endpoints(cfg: Config) -> None:
    """Raise one UserError for all endpoints and judges that cannot work."""
    errors = Errors()
    for judge in (part for label in cfg.labels for part in label.parts):
        if isinstance(judge, Judge):
            with errors, name_block(judge.block):
                validate_judge(cfg, judge)
    for key, endpoint in cfg.endpoints.items():
        with errors:
            validate_address(key, endpoint)
        with errors:
            validate_extra(key, endpoint)
        if endpoint.budget.money and not endpoint.price.is_complete:
            errors.add(TEXTS["no_price"].format(key=key, endpoint=endpoint))
        limits = {"max_tokens": True, **endpoint.extra}
        if (endpoint.budget.money or endpoint.budget.tokens) and not any(
            limits.get(name) for name in LIMITS
        ):
            errors.add(TEXTS["no_limit"].format(key=key))
    errors.raise_all()


def validate_judge(cfg: Config, judge: Judge) -> None:
    """Raise UserError for repeated judges, or too few comparisons to show every candidate."""
    if len({(normal_address(e.base_url), e.model) for e in judge.endpoints}) < len(judge.endpoints):
        raise UserError(
            "label.endpoints names a model twice, and its votes would count double. Name each once."
        )
    drawn = cfg.sample.most if judge.block.startswith("label") else None
    if (
        judge.kind is Rubrics.pairwise
        and judge.comparisons
        and drawn
        and 2 * judge.comparisons < drawn
    ):
        raise UserError(
            TEXTS["few_comparisons"].format(judge=judge, drawn=drawn, least=(drawn + 1) // 2)
        )


def validate_address(key: str, endpoint: Endpoint) -> None:
    """Raise UserError for an address that cannot be used, or a secret in the settings of an endpoint."""
    if (url := parse_address(endpoint.base_url)) is None:
        raise UserError(
            f"{key}.base_url is not an address. Use one such as http://127.0.0.1:8000/v1."
        )
    if not endpoint.model:
        raise UserError(f"{key}.model is missing. Set {key}.model=NAME, a model of this server.")
    way_out = f"Put the key in an environment variable, and set {key}.api_key_env=NAME."
    if "@" in url.netloc or url.query or url.fragment or KEY.search(url.path):
        raise UserError(
            f"{key}.base_url holds a user, a password, a query or a key, which would be stored. {way_out}"
        )
    secret = os.environ.get(endpoint.api_key_env or "", "").strip()
    secrets = [secret] if len(secret) >= SHORTEST_KEY else []
    for place, value in texts_in(endpoint.extra, f"{key}.extra"):
        if (
            KEY_NAME.search(place.rpartition(".")[2])
            or KEY.search(value)
            or any(each in value for each in secrets)
        ):
            raise UserError(f"{place} holds an API key, which would be stored. {way_out}")


def parse_address(address: str | None) -> SplitResult | None:
    """Return the parts of an address, or None if it is not an HTTP address."""
    try:
        url = urlsplit(address or "")
        host, port = url.hostname or "", url.port
        if re.fullmatch(r"[\d.]+", host):
            ipaddress.ip_address(host)
        plain = (
            str(address).isprintable() and " " not in str(address) and len(str(address)) < LONGEST
        )
        return url if url.scheme in PORTS and host.encode("idna") and port != 0 and plain else None
    except ValueError:
        return None


def normal_address(base_url: str | None) -> str:
    """Return a base_url in one normal form, so that two spellings of the same server and path are equal."""
    if (url := parse_address(base_url)) is None:
        return str(base_url)
    return f"{url.scheme}://{url.hostname}:{url.port or PORTS[url.scheme]}{url.path.rstrip('/')}"


def texts_in(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of every text inside a setting."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts_in(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from texts_in(inner, f"{place}[{i}]")
    elif isinstance(value, str) and value:
        yield place, value


def fill_prices(cfg: Config) -> None:
    """Fill in the price of each endpoint that has none, from `prices` by its model."""
    for endpoint in cfg.endpoints.values():
        if not endpoint.price.is_complete:
            endpoint.price = cfg.prices.get(str(endpoint.model), endpoint.price)


def validate_extra(key: str, endpoint: Endpoint) -> None:
    """Raise UserError for fields in `extra` that every request sets itself, or values that JSON cannot hold."""
    if repeated := REQUEST_FIELDS & endpoint.extra.keys():
        name = min(repeated)
        raise UserError(
            f"{key}.extra.{name}={endpoint.extra[name]}: every request sets {name} itself. Leave it out."
        )
    try:
        json.dumps(endpoint.extra, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        problem = f"{key}.extra={endpoint.extra}: cannot be sent as JSON ({error})"
        raise UserError(f"{problem}. Use numbers or text.") from error


def require_sampled(node: Node, store: Store) -> None:
    """Raise UserError if the endpoint for candidates lacks its package or its key."""
    if isinstance(node.config, OpenAI) and not node.config.own:
        require_askable(f"{node.config.key}.endpoint", node.config.endpoint, store)


def require_judges(node: Node, store: Store) -> None:
    """Raise UserError if the endpoint of a judge lacks its package or its key."""
    for i, endpoint in enumerate(node.config.endpoints):
        require_askable(f"label.endpoints[{i}]", endpoint, store)


def require_askable(key: str, endpoint: Endpoint, store: Store) -> None:
    """Raise UserError if the package openai or the API key is missing. With cached replies of this model in the store,
    the stage may need neither, so it reports them itself."""
    # imported here, as it loads pyarrow, which a plan does not need
    from stages.store.call_cache import Calls

    if Calls(
        store.root / "cache" / "calls", str(endpoint.base_url), str(endpoint.model)
    ).path.exists():
        return
    if find_spec("openai") is None:
        raise UserError(
            f"{key} needs the package openai. Install it: {install_command('endpoints')}."
        )
    if endpoint.api_key_env and not os.environ.get(endpoint.api_key_env, "").strip():
        raise UserError(TEXTS["no_key"].format(key=key, name=endpoint.api_key_env))


def require_page(node: Node, store: Store) -> None:
    """Raise UserError if the page for people cannot listen at its address and no running command serves it."""
    people = node.config.asks
    if people is None or store.is_locked(node.stage, node.fingerprint):
        return
    host, port = people.runtime.host, people.runtime.port
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page's server does
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(
            TEXTS["no_port"].format(block=people.block, host=host, port=port, reason=reason)
        ) from error
