"""Servers: endpoints that a configuration names (where they are, what they cost, and that it holds no key, but its
name), what asking them needs, and addresses that a page for people is to listen at."""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, urlsplit

from stages.config.blocks.endpoints import SHORTEST_KEY, Endpoint
from stages.config.blocks.labels import Label
from stages.config.choices import Demonstrations, Rubrics
from stages.config.errors import Errors, UserError, in_the_name_of
from stages.config.installation import install_command
from stages.config.schema import Config
from stages.store.node import Node
from stages.store.store import Store

NAME = re.compile(r"[A-Z][A-Z0-9_]*")  # of an environment variable
PORTS = {"http": 80, "https": 443}
LONGEST = 2000  # characters of an address
# Names of settings that hold a key, and texts that are one: of OpenAI, Hugging Face, Google and others, and JWTs.
KEY_NAME = re.compile(
    r"(api|access|auth|private|secret|client|bearer|refresh)[-_ ]?(key|token|secret)|authori[sz]ation|passw(or)?d"
    r"|passphrase|credential|^(x[-_])?(auth|bearer|key|secret|token)$",
    re.IGNORECASE,
)
KEY = re.compile(
    r"\b(sk|pk|hf|gsk|xai|nvapi|ghp|glpat|r8|csk)[-_][\w-]{16,}|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]+"
    r"|\b(Bearer|Basic) [\w+/=.~-]{8,}"
)
OURS = {"messages", "model", "stream", "n"}  # of a request


def refuse(cfg: Config) -> None:
    """Raise UserError for the endpoints that cannot be asked."""
    errors = Errors()
    for label in cfg.labels:
        if "judge" in label.labelers:
            with errors, in_the_name_of(label.name):
                judged(cfg, label)
    for key, endpoint in cfg.endpoints.items():
        with errors:
            reachable(key, endpoint)
        with errors:
            sendable(key, endpoint)
        if endpoint.budget.money and not endpoint.price.known:
            errors.add(
                f"{key}.budget.money={endpoint.budget.money:g}: nobody knows what {endpoint.model} costs. Say so: "
                f"{key}.price='{{input: 0.4, output: 1.6}}' of a million tokens, or in prices."
            )
    errors.refuse()


def judged(cfg: Config, label: Label) -> None:
    """Judges, each of them once, and as many comparisons as show every candidate to them."""
    judge, drawn = label.judge, None if label.of else cfg.sample.most
    if not judge.endpoints or not judge.kind or not judge.reading:
        raise UserError("label=judge needs judges: 'label.judge.endpoints=[{base_url: ADDRESS, model: NAME}]'.")
    if len({(address(e.base_url), e.model) for e in judge.endpoints}) < len(judge.endpoints):
        raise UserError("label.judge.endpoints names a model twice: it would be one judge, and no majority.")
    selecting = cfg.sft.demonstrations is Demonstrations.selected and not label.of
    if judge.kind is Rubrics.pairwise and selecting:
        raise UserError("sft.demonstrations=selected takes answers by their scores: label.judge.kind=pointwise.")
    if judge.kind is Rubrics.pairwise and judge.comparisons and drawn and 2 * judge.comparisons < drawn:
        raise UserError(
            f"label.judge.comparisons={judge.comparisons} leaves some of {drawn} candidates out. "
            f"{(drawn + 1) // 2} show each of them once."
        )


def reachable(key: str, endpoint: Endpoint) -> None:
    """An address without a secret in it, and the name of a variable, never a key."""
    url = split(endpoint.base_url)
    if url is None:
        raise UserError(f"{key}.base_url is no address: http://127.0.0.1:8000/v1, for example.")
    if not endpoint.model:
        raise UserError(f"{key}.model: which of the server's models is it?")
    way_out = f"Set a variable of the environment to it, and name that: {key}.api_key_env=NAME."
    if "@" in url.netloc or url.query or url.fragment or KEY.search(url.path):
        raise UserError(
            f"{key}.base_url holds a user, a password, a query or a key, which every node keeps. {way_out}"
        )
    secret = os.environ.get(endpoint.api_key_env or "", "").strip()
    hidden = [secret] if len(secret) >= SHORTEST_KEY else []
    for place, value in texts(endpoint.extra, f"{key}.extra"):
        if KEY_NAME.search(place.rpartition(".")[2]) or KEY.search(value) or any(each in value for each in hidden):
            raise UserError(f"{place} holds a key, which every node keeps. {way_out}")
    if endpoint.api_key_env and not NAME.fullmatch(endpoint.api_key_env):
        raise UserError(f"{key}.api_key_env is the name of an environment variable, OPENAI_API_KEY, and never a key.")


def split(address: str | None) -> SplitResult | None:
    """Return the parts of an address; None where no HTTP client can ask there."""
    try:
        url = urlsplit(address or "")
        host, port = url.hostname or "", url.port
        if re.fullmatch(r"[\d.]+", host):
            ipaddress.ip_address(host)
        plain = str(address).isprintable() and " " not in str(address) and len(str(address)) < LONGEST
        return url if url.scheme in PORTS and host.encode("idna") and port != 0 and plain else None
    except ValueError:
        return None


def address(base_url: str | None) -> str:
    """Return a base_url as everybody who means the same server and path can spell it."""
    url = split(base_url)
    if url is None:
        return str(base_url)
    return f"{url.scheme}://{url.hostname}:{url.port or PORTS[url.scheme]}{url.path.rstrip('/')}"


def texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield every text in a setting, with its key."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from texts(inner, f"{place}.{name}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from texts(inner, f"{place}[{i}]")
    elif isinstance(value, str) and value:
        yield place, value


def priced(cfg: Config) -> None:
    """Put the price of its model into every endpoint that was given none."""
    for endpoint in cfg.endpoints.values():
        if not endpoint.price.known:
            endpoint.price = cfg.prices.get(str(endpoint.model), endpoint.price)


def sendable(key: str, endpoint: Endpoint) -> None:
    """Names in `extra` that a server is told anyway, and numbers that JSON does not have."""
    if named := OURS & endpoint.extra.keys():
        name = min(named)
        raise UserError(f"{key}.extra.{name}={endpoint.extra[name]}: every request sets {name} itself. Leave it out.")
    try:
        json.dumps(endpoint.extra, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}.extra={endpoint.extra}: cannot be sent as JSON ({error}). Write numbers or text."
        ) from error


def require_sampled(node: Node, store: Store) -> None:
    """Raise UserError where the endpoint that draws candidates cannot be asked."""
    if node.config.sampler == "openai" and not node.config.own:
        require_askable(f"{node.config.key}.endpoint", node.config.endpoint, store)


def require_judges(node: Node, store: Store) -> None:
    """Raise UserError where a judge cannot be asked."""
    if node.config.labeler == "judge" and not node.config.own:
        for i, endpoint in enumerate(node.config.judge.endpoints or ()):
            require_askable(f"label.judge.endpoints[{i}]", endpoint, store)


def require_askable(key: str, endpoint: Endpoint, store: Store) -> None:
    """Raise UserError without the package that asks, or the key that is named. Where answers of this model are kept,
    they may be all that is needed, and the stage tells what else is."""
    from stages.store.call_cache import Calls  # loads tables, which a plan does without

    if Calls(store.root / "cache" / "calls", str(endpoint.base_url), str(endpoint.model)).path.exists():
        return
    if find_spec("openai") is None:
        raise UserError(f"{key} needs the package openai: {install_command('endpoints')}.")
    if endpoint.api_key_env and not os.environ.get(endpoint.api_key_env, "").strip():
        raise UserError(
            f"{key}.api_key_env={endpoint.api_key_env}: the environment has no such variable, or it is empty. Set "
            f"it: export {endpoint.api_key_env}=KEY"
        )


def require_page(node: Node, store: Store) -> None:
    """Raise UserError where the page for people cannot listen at its address, unless a command that runs now already
    asks them there."""
    cfg = node.config
    if "human" not in cfg.labelers or store.is_locked(node.stage, node.fingerprint):
        return
    host, port = cfg.human.runtime.host or "127.0.0.1", cfg.human.runtime.port or 0
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page's server does
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"label.human.runtime: cannot listen at {host}, port {port}: {reason}. port=0 takes a free one, and "
            "host=127.0.0.1 is this machine."
        ) from error
