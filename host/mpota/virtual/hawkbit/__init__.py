"""A stand-in for Eclipse hawkBit, for tests and rehearsals: what boards see of it (DDI).

`state` is what the server knows, with what an operator does to it; `device` what the requests of
devices do to it; `ddi` puts that on HTTP, and `server` on a socket. Observed on hawkBit master of
2026-08-21 (after 1.1.0), its faults included. aiohttp does the protocol (``pip install
mpota[serve]``): `ddi` imports it, `state` and `device` do not.
"""
