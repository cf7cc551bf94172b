"""A server of S3 in a process of its own (moto), and a proxy that can break requests: `python -m … FAULTS_FILE`.

The file holds lines `KIND SHARE`; each request suffers a fault of a kind with that share. `read-only` refuses what writes.
The process prints the port of the server and the port of the proxy."""

import asyncio
import os
import random
import re
import sys
from pathlib import Path

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CONNECTION = re.compile(rb"(?i)\r\nconnection: *[^\r]*")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
HANG_SECONDS = 600.0
SLOW_SECONDS = 0.3


class Proxy:
    """Forwards each request to the server, or breaks it."""

    def __init__(self, port: int, faults: Path):
        self.port = port
        self.faults = faults
        self.random = random.Random(0)
        self.counts = dict[str, int]()

    def draw_fault(self) -> str:
        for line in self.faults.read_text().splitlines() if self.faults.exists() else []:
            kind, share = line.split()
            if self.random.random() < float(share):
                self.counts[kind] = self.counts.get(kind, 0) + 1
                self.faults.with_suffix(".counts").write_text(repr(self.counts))
                return kind
        return ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request, and return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
        fault = self.draw_fault()
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if fault == "slow":
            await asyncio.sleep(SLOW_SECONDS)
        is_read = head.startswith((b"GET ", b"HEAD "))
        if fault == "read-only":
            fault = "" if is_read else "403"
        if fault in ("403", "500", "503"):
            content = {"403": DENIED, "503": SLOW_DOWN}.get(fault, b"")
            writer.write(
                b"HTTP/1.1 %s Fault\r\nContent-Length: %d\r\n\r\n" % (fault.encode(), len(content))
                + content
            )
            await writer.drain()
            return True
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.port)
        server_writer.write(
            CONNECTION.sub(b"", head)[:-4] + b"\r\nConnection: close\r\n\r\n" + body
        )
        answer = await server_reader.read()
        server_writer.close()
        if fault == "lost":  # the server has done its work
            writer.transport.abort()
            return False
        writer.write(answer[: len(answer) * 2 // 3] if fault == "cut" else answer)
        await writer.drain()
        return False


async def main(faults: Path) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = await asyncio.start_server(Proxy(port, faults).serve, "127.0.0.1", 0, limit=2**20)
    os.write(1, f"{port} {proxy.sockets[0].getsockname()[1]}\n".encode())
    await proxy.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
