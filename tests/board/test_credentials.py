"""Secrets go to the origin that they were given for, whatever names the next URL."""

from __future__ import annotations

import json

import pytest

from tests.support import releases, web
from tests.support.ota_board import NEW, output, slot_content, states
from tests.support.web import HOST, File, root, server_identity

SECRETS = ", auth=('me', 'secret'), headers={'X-Api-Key': 'k', 'Accept': '*/*'}, max_failures=1"
ROOTS = f", cadata={root().der!r}"
DOWNGRADE = ", allow_downgrade_to_http=True"


@pytest.fixture
def server():
    with web.serving({"/app.bin": File(NEW)}) as server:
        yield server


@pytest.fixture
def other():
    """A server of another origin: only the port differs."""
    with web.serving({"/app.bin": File(NEW)}) as other:
        yield other


@pytest.fixture
def secure():
    with web.serving({"/app.bin": File(NEW)}, server_identity().context()) as secure:
        yield secure


def attempt(call):
    return f"""
import asyncio, ota
try:
    {call}
    print("done")
except ota.OTAError as error:
    print(error.code + ":", error)
"""


# What a server answers at /x.json so that the next URL is ``url``, and the call that asks for it.
def by_redirect(url):
    def answer(handler):
        handler.answer("302 Found", [f"Location: {url}", "Content-Length: 0"])

    return answer, "ota.update.from_file({0!r}, verbose=False, reboot=False{1})"


def by_async_redirect(url):
    return by_redirect(url)[0], "asyncio.run(ota.update.fetch({0!r}{1}))"


def by_json(url):
    data = {"firmware": url, "sha": "", "length": 0}
    call = "ota.update.from_json({0!r}, verbose=False, reboot=False{1})"
    return File(json.dumps(data).encode()), call


def by_manifest(url):
    data = json.loads(releases.manifest(releases.Content("app", "app.bin", NEW)).to_bytes())
    (payload,) = data["payloads"]
    del payload["member"]
    payload["url"] = url
    return File(json.dumps(data).encode()), "ota.release.install({0!r}, reboot=False{1})"


WAYS = [by_redirect, by_async_redirect, by_json, by_manifest]


def secrets(request):
    return {"authorization", "x-api-key"} & set(request.headers)


@pytest.mark.parametrize("way", WAYS)
def test_another_origin_gets_no_secret(board, server, other, way, hostile):
    hostile()
    server.files["/x.json"], call = way(other.url("/app.bin"))
    printed = output(board, attempt(call.format(server.url("/x.json"), SECRETS)))
    assert printed == "done\n"
    assert all(secrets(request) for request in server.requests)
    assert other.requests
    for request in other.requests:
        assert set(request.headers) == {"host", "accept", "accept-encoding", "user-agent"}
    assert states(board) == ["VALID", "NEW"]
    assert slot_content(board, len(NEW)) == NEW


@pytest.mark.parametrize("way", WAYS)
def test_the_same_origin_gets_them_again(board, server, way):
    server.files["/x.json"], call = way("/app.bin" if way is not by_manifest else "./app.bin")
    # The name of the host is not a matter of upper and lower case.
    url = server.url("/x.json").replace(HOST, HOST.upper()).replace("http:", "HTTP:")
    assert output(board, attempt(call.format(url, SECRETS))) == "done\n"
    assert [request.path for request in server.requests][-1] == "/app.bin"
    assert all(secrets(request) == {"authorization", "x-api-key"} for request in server.requests)


@pytest.mark.parametrize("way", WAYS)
def test_a_way_back_gets_them_again(board, server, other, way, hostile):
    """Over another origin: that one can choose no URL that it could not name itself."""
    hostile()
    server.files["/x.json"], call = way(other.url("/back"))
    other.files["/back"], _ = by_redirect(server.url("/app.bin"))
    assert output(board, attempt(call.format(server.url("/x.json"), SECRETS))) == "done\n"
    assert not any(secrets(request) for request in other.requests)
    assert secrets(server.requests[-1])


@pytest.mark.parametrize("way", WAYS)
def test_nothing_goes_on_from_https_to_http(board, server, secure, way, hostile):
    hostile()
    secure.files["/x.json"], call = way(server.url("/app.bin"))
    printed = output(board, attempt(call.format(secure.url("/x.json"), SECRETS + ROOTS)))
    assert printed.startswith(f"redirect: {HOST} ")
    assert printed.endswith("s from https to http\n")
    assert server.requests == []
    assert states(board) == ["VALID", "-"]


@pytest.mark.parametrize("way", WAYS)
def test_unless_that_is_spelled_out_and_then_without_secrets(board, server, secure, way):
    secure.files["/x.json"], call = way(server.url("/app.bin"))
    more = SECRETS + ROOTS + DOWNGRADE
    assert output(board, attempt(call.format(secure.url("/x.json"), more))) == "done\n"
    assert not any(secrets(request) for request in server.requests)


def test_https_between_two_http_hosts_does_not_lead_back_to_http(board, server, secure, other):
    server.files["/x.json"], call = by_redirect(secure.url("/y"))
    secure.files["/y"], _ = by_redirect(other.url("/app.bin"))
    printed = output(board, attempt(call.format(server.url("/x.json"), SECRETS + ROOTS)))
    assert printed == f"redirect: {HOST} redirects from https to http\n"
    assert other.requests == []
    assert not any(secrets(request) for request in secure.requests)


def test_the_same_host_by_https_is_another_origin(board, server, secure):
    server.files["/x.json"], call = by_json(secure.url("/app.bin"))
    assert output(board, attempt(call.format(server.url("/x.json"), SECRETS + ROOTS))) == "done\n"
    assert not any(secrets(request) for request in secure.requests)


def test_the_caller_may_name_the_origin(board, server, other):
    call = "ota.update.from_file({0!r}, verbose=False, reboot=False{1})"
    more = f"{SECRETS}, origin={other.url('/')!r}"
    assert output(board, attempt(call.format(server.url("/app.bin"), more))) == "done\n"
    assert not secrets(server.requests[0])


def test_a_connection_that_breaks_takes_no_secret_elsewhere(board, server, other):
    server.files["/x.json"], call = by_redirect(other.url("/app.bin"))
    other.troubles = [web.drop(0x8000), web.reset(0x4000)]
    more = SECRETS.replace("max_failures=1", "pause=0.01")
    assert output(board, attempt(call.format(server.url("/x.json"), more))).endswith("done\n")
    assert len(other.requests) == 3
    assert not any(secrets(request) for request in other.requests)
    assert all(secrets(request) for request in server.requests)


def test_a_signature_beside_the_manifest_is_asked_for_with_them(board, server, other):
    server.files["/x.json"], call = by_manifest(other.url("/app.bin"))
    server.files["/x.sig"], _ = by_redirect(other.url("/x.sig"))
    assert output(board, attempt(call.format(server.url("/x.json"), SECRETS))) == "done\n"
    assert [(r.path, bool(secrets(r))) for r in server.requests] == [
        ("/x.json", True),
        ("/x.sig", True),
    ]
    assert [(r.path, bool(secrets(r))) for r in other.requests] == [
        ("/x.sig", False),
        ("/app.bin", False),
    ]


@pytest.mark.parametrize("value", ["a\\r\\nX-Evil: 1", "a\\nX-Evil: 1", "a\\rX-Evil: 1"])
def test_a_header_stays_one_header(board, server, value, hostile):
    hostile()
    call = f"ota.update.from_file({server.url('/app.bin')!r}, headers={{'X-Api-Key': '{value}'}})"
    printed = output(board, attempt(call))
    assert "address: a line break in the URL or a header: " in printed
    assert server.requests == []
