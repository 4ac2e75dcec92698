"""The line between a board and its server, over a rehearsal of thousands of updates."""

from __future__ import annotations

import subprocess
import sys

_SCRIPT = """
import resource, socket, socketserver, threading
from mpota.rehearse.relay import LOOPBACK, Relay

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.read())

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
socket.setdefaulttimeout(30)
with socketserver.ThreadingTCPServer((LOOPBACK, 0), Echo) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Relay(server.server_address) as relay:
        for number in range(300):
            with socket.create_connection((LOOPBACK, relay.port)) as line:
                line.sendall(b"%d" % number)
                line.shutdown(socket.SHUT_WR)
                assert line.makefile("rb").read() == b"%d" % number, number
    server.shutdown()
"""


def test_connections_that_have_ended_hold_nothing_open() -> None:
    """There are more of them than a process may have open files."""
    result = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
