"""Checks of the page for people and of their answers, before a node is built."""

import socket
from collections.abc import Callable
from importlib.util import find_spec

from stages.config.blocks.labels import Ensemble
from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.extras.human import Human
from stages.store import plugins
from stages.store.node import Node
from stages.store.store import Store


def require_page_for_people(node: Node, store: Store) -> None:
    """Raise UserError if the page for people lacks a package, or cannot listen at its address and no running command
    serves it."""
    people = node.config.asked_people
    if people is None or store.is_locked(node.stage, node.fingerprint):
        return  # a locked node is served by a running command
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UserError(
            f"{people.block}: the page for people needs starlette and uvicorn: {install_command('people')}."
        )
    host, port = people.runtime.host, people.runtime.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the page's server does
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(
            f"{people.block}.runtime: cannot listen at {host}, port {port}: {reason}. Use port=0 and host=127.0.0.1."
        ) from error


def require_answers_of_people(node: Node, store: Store) -> None:
    """Raise UserError if the file of people's answers does not exist or has no answers."""
    people = node.config.asked_people
    if people is None or not people.answered:
        return
    # imported here, as every command reads this file
    from stages.extras.human import answer_rows

    setting = f"{people.block}.answered={people.answered}"
    file = plugins.user_path(people.answered)
    if not file.is_file():
        raise UserError(f"{setting}: the file does not exist. Correct the path.")
    if not any(answer for _, answer in answer_rows.parse_answers(file, f"{people.block}.answered")):
        raise UserError(f"{setting}: has no answers. Fill in its empty fields, or leave it out.")


CHECKS: dict[Callable[[Node, Store], None], tuple[type, ...]] = {
    require_page_for_people: (Human, Ensemble),
    require_answers_of_people: (Human, Ensemble),
}
