"""A client written from docs/PROTOCOL.md alone, as others would; and it can lie."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import zlib

from mpota.push.wire import Link

HELLO, BEGIN, END, ABORT = 1, 2, 3, 4
WELCOME, STATUS, AGAIN, DONE, ERROR, READY = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
WINDOW = 4096


class Plain:
    """Each step returns the message that answers it; nothing is repeated, nothing is checked."""

    def __init__(self, link: Link, secret: bytes | None = None) -> None:
        self.link = link
        self.secret = secret
        self.nonces = b""
        self.version = 2
        self.position = 0  # where the board wants us to go on
        self.limit = 0  # how far it lets us go
        self.packet_size = 20
        self.sha = b""

    async def hear(self, timeout_s: float = 5) -> bytes:
        message = await self.link.receive(timeout_s)
        assert message, "the board is silent"
        return message

    async def greet(self, nonce: bytes | None = None) -> bytes:
        nonce = nonce or os.urandom(16)
        await self.link.send(bytes((HELLO, self.version)) + nonce)
        welcome = await self.hear()
        if welcome[0] == WELCOME:
            self.nonces = nonce + welcome[3:19]
            self.packet_size = min(struct.unpack_from("<H", welcome, 21)[0], self.link.packet_size)
        return welcome

    def proof(self, what: str, message: bytes) -> bytes:
        if not self.secret:
            return b""
        return hmac.digest(
            self.secret, b"mpota2 " + what.encode() + self.nonces + message, "sha256"
        )

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
        await self.link.send(self.begin_message(data, size, sha, chip, version, resume))
        answer = await self.hear()
        self._take_credit(answer)
        return answer

    def begin_message(
        self,
        data: bytes,
        size: int | None = None,
        sha: bytes | None = None,
        chip: int = 0xFFFF,
        version: bytes = b"1",
        flags: int = 0,
    ) -> bytes:
        size = len(data) if size is None else size
        self.sha = sha or hashlib.sha256(data).digest()
        head = struct.pack("<BBI32sHB", BEGIN, flags, size, self.sha, chip, len(version))
        return head + version + self.proof("begin", head + version)

    def _take_credit(self, answer: bytes) -> None:
        if answer[0] in (STATUS, AGAIN, READY):
            _, position, credit = struct.unpack_from("<BIH", answer)
            self.limit = position + credit
            if answer[0] != STATUS:
                self.position = position

    async def send(
        self, data: bytes, crc_error: int = 0, follow: bool = False, wait: bool = True
    ) -> bytes:
        """All of it from where READY said, as credit allows; the first message that is no STATUS,
        or the last one. ``follow``: at AGAIN go where it says. Without ``wait`` nothing is waited
        for once all is sent: the board may say something only a second later."""
        answer = struct.pack("<BIH", STATUS, 0, 0)
        goes_on = (STATUS, AGAIN) if follow else (STATUS,)
        while answer[0] in goes_on:
            if self.position < len(data) and self.limit > self.position:
                await self._send_packet(data, crc_error)
                while follow and (came := await self.link.receive(0)):
                    answer = came
                    self._take_credit(answer)
            elif self.position < len(data):
                answer = await self.hear()
                self._take_credit(answer)
            elif wait and self.done(answer) < len(data):
                answer = await self.hear(20)
                self._take_credit(answer)
            else:
                break
        return answer

    async def _send_packet(self, data: bytes, crc_error: int) -> None:
        position = self.position
        room = min(self.packet_size - 2 - 4, self.limit - position)
        stop = min(position - position % WINDOW + WINDOW, len(data))
        part = data[position : min(position + room, stop)]
        packet = struct.pack("<H", position & 0xFFFF) + part
        if position + len(part) == stop:
            start = position - position % WINDOW
            packet += struct.pack("<I", zlib.crc32(data[start:stop]) ^ crc_error)
        await self.link.send_data(packet)
        self.position += len(part)

    def done(self, status: bytes) -> int:
        return int(struct.unpack("<BIH", status)[1])

    async def end(self, restart: int = 0) -> bytes:
        head = bytes((END, restart))
        await self.link.send(head + self.proof("end", head + self.sha))
        return await self.hear(30)

    async def abort(self) -> None:
        await self.link.send(bytes((ABORT,)) + self.proof("abort", bytes((ABORT,))))


def code(message: bytes) -> str:
    """Of an ERROR."""
    assert message[0] == ERROR, message
    return message[2 : 2 + message[1]].decode()


def text(message: bytes) -> str:
    return message[2 + message[1] :].decode()
