"""Where node 0 listens for the others."""

import ipaddress
import socket

from stages.config.errors import UserError


def listening(rendezvous: str) -> socket.socket:
    """Return a socket of this machine's that listens at HOST:PORT.

    Raises:
        UserError: where node 0 cannot listen there, or where no other node could reach it.
    """
    host, _, port = rendezvous.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(address[0]).is_loopback and not host.startswith(("127.", "localhost", "::1")):
            raise UserError(
                f"launch.rendezvous={rendezvous}: on this machine {host} is {address[0]}, which no other reaches. "
                "Give the address by which they reach node 0."
            )
        return socket.create_server(address[:2], family=family)
    except (OSError, ValueError) as error:
        raise UserError(
            f"launch.rendezvous={rendezvous}: node 0 cannot listen there ({error}). Give an address of this machine, "
            "and a free port."
        ) from error
