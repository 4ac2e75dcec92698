"""How a DDI client speaks with the server: see ddi.py. Loaded for that."""

from hashlib import sha256

from micropython import const

from . import base
from .base import OTAError, SourceError
from .ddi_start import make_ask
from .follow_more import check_answer

KEY = "ddi"  # the origin of its trials; in NVS: whose actions they are of
_WHOSE_SIZE = const(8)
GONE = (404, 405, 410)  # statuses for an action that is not open (any more)


def asking(client, method, path, body=None, limit=0):
    """A generator: send a request; (status, body). Raises OTAError as `checking`."""
    answer = yield from client._exchanging(make_ask(client, method, path, body), limit)
    yield from checking(client, *answer)
    return answer[0], answer[2]


def checking(client, status, after, body):
    """A generator: raise OTAError for an answer that would be the same for any request."""
    url = client.url
    is_answer = isinstance(status, int)
    check_answer(client, url, status, after if is_answer else body)
    if status == "tls":
        yield from _explaining(client)
        raise SourceError("tls", "%s: %s" % (url, body))
    if not is_answer:
        raise SourceError("protocol", "%s sent what is no answer: %s" % (url, body))
    if status == 401:
        raise OTAError(
            "token",
            "%s answers 401: another token is due, or the server does not know this device, or "
            "not this kind of token" % url,
        )


def _explaining(client):
    """A generator: have the full client, which knows more, raise what is wrong with TLS."""
    from .pump import make_source

    source = make_source(client.url, max_failures=1, **client.request)
    try:
        yield from source.opening()
    finally:
        source.close()


def say(client, action, execution, finished, details, code=None, kind="deploymentBase"):
    """A generator: feedback, without a time, which the server would believe. Its status."""
    status = {"execution": execution, "result": {"finished": finished}, "details": details}
    if code is not None:
        status["code"] = code
    path = "/%s/%d/feedback" % (kind, action)
    found, _ = yield from asking(client, "POST", path, {"id": str(action), "status": status})
    if found != 200 and found not in GONE:
        client.log("action %d: the server answers %d to '%s'" % (action, found, execution))
    return found


# --- whose actions the trial is of


def owns(client, trial):
    """Whether the trial is of an action of this server."""
    return trial.origin == KEY and bytes(base.recall(KEY, _WHOSE_SIZE)) == _whose(client)


def own(client):
    """Note that the trial is of an action of this server."""
    if bytes(base.recall(KEY, _WHOSE_SIZE)) != _whose(client):
        base.note(KEY, _whose(client))


def _whose(client):
    return sha256(client.url.encode()).digest()[:_WHOSE_SIZE]
