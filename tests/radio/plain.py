"""A client written from docs/PROTOCOL.md alone, as others would; and it can lie."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import zlib

from mpota.wire import Link

HELLO, BEGIN, END, ABORT = 1, 2, 3, 4
WELCOME, STATUS, AGAIN, DONE, ERROR, READY = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
WINDOW = 4096


class Plain:
    """Each step returns the message that answers it; nothing is repeated, nothing is checked."""

    def __init__(self, link: Link, secret: bytes | None = None) -> None:
        self.link = link
        self.secret = secret
        self.nonces = b""
        self.limit = 0  # how far the board lets us go

    async def hear(self, timeout_s: float = 5) -> bytes:
        message = await self.link.receive(timeout_s)
        assert message, "the board is silent"
        return message

    async def greet(self) -> bytes:
        nonce = os.urandom(16)
        await self.link.send(bytes((HELLO, 1)) + nonce)
        welcome = await self.hear()
        if welcome[0] == WELCOME:
            self.nonces = nonce + welcome[3:19]
        return welcome

    async def begin(
        self,
        data: bytes,
        *,
        size: int | None = None,
        sha: bytes | None = None,
        chip: int = 0xFFFF,
        version: bytes = b"1",
        resume: int = 0,
    ) -> bytes:
        size = len(data) if size is None else size
        sha = sha or hashlib.sha256(data).digest()
        message = struct.pack("<BBI32sHB", BEGIN, resume, size, sha, chip, len(version)) + version
        if self.secret:
            proof = b"mpota client" + self.nonces + message
            message += hmac.digest(self.secret, proof, "sha256")
        await self.link.send(message)
        answer = await self.hear()
        self._take_credit(answer)
        return answer

    def _take_credit(self, answer: bytes) -> None:
        if answer[0] in (STATUS, AGAIN, READY):
            _, position, credit = struct.unpack_from("<BIH", answer)
            self.limit = position + credit

    async def send(self, data: bytes, crc_error: int = 0) -> bytes:
        """All of it, as credit allows; the first message that is no STATUS, or the last one."""
        position = 0
        answer = struct.pack("<BIH", STATUS, 0, 0)
        room = self.link.packet_size - 2 - 4
        while position < len(data):
            stop = min(position - position % WINDOW + WINDOW, len(data))
            part = data[position : min(position + room, stop)]
            packet = struct.pack("<H", position & 0xFFFF) + part
            if position + len(part) == stop:
                start = position - position % WINDOW
                packet += struct.pack("<I", zlib.crc32(data[start:stop]) ^ crc_error)
            while position + len(part) > self.limit:
                answer = await self.hear()
                if answer[0] != STATUS:
                    return answer
                self._take_credit(answer)
            await self.link.send_data(packet)
            position += len(part)
        while answer[0] == STATUS and struct.unpack("<BIH", answer)[1] < len(data):
            answer = await self.hear()
        return answer

    async def end(self, restart: int = 0) -> bytes:
        await self.link.send(bytes((END, restart)))
        return await self.hear(30)


def code(message: bytes) -> str:
    """Of an ERROR."""
    assert message[0] == ERROR, message
    return message[2 : 2 + message[1]].decode()


def text(message: bytes) -> str:
    return message[2 + message[1] :].decode()
