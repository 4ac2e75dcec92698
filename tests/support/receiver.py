"""A board's receiver under real MicroPython, with a clock that tests set, and clients of it."""

PRELUDE = """
import gc, os, random, struct
import ota.push_receiver as pr
from binascii import crc32
SECRET = b"correct horse battery staple"
now = 1000
def work(receiver):  # as every link does it between two packets
    while receiver.work():
        pass
pr.ticks_ms = lambda: now & 0x3FFFFFFF
class Link:
    credit, packet_size = 4096, 244
    def __init__(self, peer=1):
        self.peer, self.sent, self.is_closed = peer, [], False
    def send(self, message):
        self.sent.append(bytes(message))
    def close(self):
        self.is_closed = True
class Client:
    def __init__(self, receiver, peer=1, secret=SECRET):
        self.r, self.secret = receiver, secret
        self.link = Link(peer)
        self.session = receiver.open(self.link)
        self.nonces = b""
    def say(self, message):
        self.r.message(self.session, memoryview(message))
        work(self.r)
        return self.answer()
    def answer(self):
        return self.link.sent[-1] if self.link.sent else b""
    def greet(self, nonce=None):
        nonce = nonce or os.urandom(16)
        answer = self.say(b"\\x01\\x02" + nonce)
        if answer[:1] == b"\\x81":
            self.nonces = nonce + answer[3:19]
        return answer
    def prove(self, who, message):
        if not self.secret:
            return b""
        return pr.hmac(self.secret, b"mpota2 " + who + self.nonces + message)
    def begin(self, size=9000, sha=bytes(32), flags=0, chip=0xFFFF, version=b"1"):
        self.sha = sha
        head = struct.pack("<BBI32sHB", 2, flags, size, sha, chip, len(version)) + version
        return self.say(head + self.prove(b"begin", head))
    def end(self, restart=0):
        head = bytes((3, restart))
        return self.say(head + self.prove(b"end", head + self.sha))
    def abort(self):
        return self.say(b"\\x04" + self.prove(b"abort", b"\\x04"))
def code(answer):
    if answer[:1] == b"\\x85":
        return str(answer[2:2 + answer[1]], "ascii")
    return "kind %x" % answer[0]
def wait(receiver, ms, step=100):
    global now
    for _ in range(0, ms, step):
        now += step
        work(receiver)
        receiver.poll()
"""
