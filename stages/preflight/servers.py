"""Servers: what asking an endpoint needs, and addresses that a page for people is to listen at."""

import os
import socket
from importlib.util import find_spec

from stages.config.blocks.endpoints import Endpoint
from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.store.node import Node
from stages.store.store import Store


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
