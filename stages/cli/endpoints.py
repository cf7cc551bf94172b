"""Endpoints that a configuration names: where they are, what they cost, and that it holds no key, but its name."""

import json
import re
from urllib.parse import urlsplit

from stages.config.blocks.endpoints import Endpoint
from stages.config.choices import Demonstrations, Rubrics
from stages.config.errors import Errors, UserError
from stages.config.schema import Config

NAME = re.compile(r"[A-Z][A-Z0-9_]*")  # of an environment variable
OURS = {"messages", "model", "stream", "n"}  # of a request


def refuse(cfg: Config) -> None:
    """Raise UserError for the endpoints that cannot be asked."""
    errors = Errors()
    if "judge" in cfg.label.labelers:
        with errors:
            judged(cfg)
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


def judged(cfg: Config) -> None:
    """Judges, each of them once, and as many comparisons as show every candidate to them."""
    judge, drawn = cfg.label.judge, cfg.sample.most
    if not judge.endpoints or not judge.kind or not judge.reading:
        raise UserError("label=judge needs judges: 'label.judge.endpoints=[{base_url: ADDRESS, model: NAME}]'.")
    if len({(e.base_url, e.model) for e in judge.endpoints}) < len(judge.endpoints):
        raise UserError("label.judge.endpoints names a model twice: it would be one judge, and no majority.")
    if judge.kind is Rubrics.pairwise and cfg.sft.demonstrations is Demonstrations.selected:
        raise UserError("sft.demonstrations=selected takes answers by their scores: label.judge.kind=pointwise.")
    if judge.kind is Rubrics.pairwise and judge.comparisons and drawn and 2 * judge.comparisons < drawn:
        raise UserError(
            f"label.judge.comparisons={judge.comparisons} leaves some of {drawn} candidates out. "
            f"{(drawn + 1) // 2} show each of them once."
        )


def reachable(key: str, endpoint: Endpoint) -> None:
    """An address without a secret in it, and the name of a variable, never a key."""
    url = urlsplit(endpoint.base_url or "")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UserError(f"{key}.base_url is no address: http://127.0.0.1:8000/v1, for example.")
    if not endpoint.model:
        raise UserError(f"{key}.model: which of the server's models is it?")
    if url.username or url.password or url.query:
        raise UserError(f"{key}.base_url holds a user, a password or a query: a secret belongs into api_key_env's.")
    if endpoint.api_key_env and not NAME.fullmatch(endpoint.api_key_env):
        raise UserError(f"{key}.api_key_env is the name of an environment variable, OPENAI_API_KEY, and never a key.")


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
