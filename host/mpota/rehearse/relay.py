"""The line between a board and its peer: counts bytes, and breaks where it is told to."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import threading

LOOPBACK = "127.0.0.1"
_PIECE = 4096
_SEND_BUFFER = 8192  # so that little is on its way that a board has not seen when a line breaks
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends a reset


class Relay:
    """A TCP port on loopback that leads to ``target``; a context manager.

    ``to_board`` counts the bytes that went to the board: from the target to the client, or, with
    ``is_board_behind``, the other way. With ``break_at`` all connections are reset as soon as so
    many have gone, once: then it is None.
    """

    def __init__(self, target: tuple[str, int], *, is_board_behind: bool = False) -> None:
        self._target = target
        self._is_board_behind = is_board_behind
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self.to_board = 0
        self.break_at: int | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._board_ends: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._break()

    def restart(self, break_at: int | None = None) -> None:
        """Count from 0."""
        with self._lock:
            self.to_board = 0
            self.break_at = break_at

    @property
    def taken(self) -> int:
        """Bytes that have arrived at the board: of these no more wait there than its buffer holds
        (`_RECEIVE_BUFFERS` in confine.py)."""
        with self._lock:
            return self.to_board - sum(map(_unread, self._board_ends))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            board = server if self._is_board_behind else client
            board.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            with self._lock:
                self._open |= {client, server}
                self._board_ends.add(board)
            threading.Thread(target=self._carry, args=(client, server, board), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket, board: socket.socket) -> None:
        """All that goes through one connection, until both ends have said all or one is gone."""
        back = threading.Thread(
            target=self._pump, args=(server, client, client is board), daemon=True
        )
        back.start()
        self._pump(client, server, server is board)
        back.join()
        with self._lock:
            self._open -= {client, server}
            self._board_ends.discard(board)
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, is_counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                if is_counted and self._is_broken_by(data, sink):
                    break
                sink.sendall(data)
                if is_counted:
                    with self._lock:
                        self.to_board += len(data)
            else:
                sink.shutdown(socket.SHUT_WR)
                return
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _is_broken_by(self, data: bytes, sink: socket.socket) -> bool:
        with self._lock:
            if self.break_at is None or self.to_board + len(data) < self.break_at:
                return False
            rest = self.break_at - self.to_board
            self.break_at = None
            self.to_board += rest
        with contextlib.suppress(OSError):
            sink.sendall(data[:rest])
        self._break()
        return True

    def _break(self) -> None:
        with self._lock:
            sockets, self._open = self._open, set()
            self._board_ends.clear()
        for one in sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _unread(one: socket.socket) -> int:
    """Bytes that were sent and have not arrived (tcp(7): SIOCOUTQ)."""
    try:
        (size,) = struct.unpack("i", fcntl.ioctl(one, termios.TIOCOUTQ, bytes(4)))
    except OSError:  # it is closed
        return 0
    return int(size)
