"""How ota.mqtt.Updates (mqtt.py) begins: its options. Loaded for that."""

from micropython import const

_MAX_ID = const(64)  # characters
_MAX_NAME = const(64)
_WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
# The keys that `dev` may have: Home Assistant refuses the whole message for an unknown one.
_DEVICE = "ids cns name mf mdl mdl_id sw hw sn cu"


def begin(channel, updates, options):
    """Set what an Updates needs. Raises ValueError."""
    board_id = options.pop("id", None)
    if board_id is None:
        from machine import unique_id

        board_id = unique_id().hex()
    updates.id = board_id = safe(board_id)
    base = _check_topic("base", options.pop("base", "mpota"))
    updates.discovery = options.pop("discovery", "homeassistant")
    if updates.discovery is not None:
        _check_topic("discovery", updates.discovery)
    updates.topic = ("%s/%s/" % (base, board_id)).encode()
    updates.name = options.pop("name", None) or board_id
    updates.device = options.pop("device", None) or {}
    for key in updates.device:
        if key not in _DEVICE.split():
            raise ValueError("device has '%s', Home Assistant knows %s" % (key, _DEVICE))
    updates.release_url = options.pop("release_url", None)
    updates.will = None
    if options.pop("is_available", True):
        updates.will = updates.topic + b"status", b"offline", True, 1
    updates.auto = bool(options.pop("auto", False))
    if options:
        raise TypeError("unexpected option '%s'" % next(iter(options)))
    updates.restart, channel.restart = channel.restart, updates._note_restart
    updates.progress, channel.progress = channel.progress, updates._progress


def safe(text):
    """``text`` as it may stand in topics and ids of Home Assistant."""
    found = "".join(
        [c if c in _WORD else "".join(["_%02x" % byte for byte in c.encode()]) for c in text]
    )
    return found[:_MAX_ID] or "_"


def _check_topic(what, text):
    if not text or len(text) > _MAX_NAME or any(c in "+#\0" or c < " " for c in text):
        raise ValueError("%s is %r: a topic of 1 to %d characters, no + or #" % (
            what, text[: _MAX_NAME + 1], _MAX_NAME
        ))  # fmt: skip
    return text.strip("/")
