"""What ota.mqtt.Updates (mqtt.py) tells of the releases. Loaded for that.

The payload is that of Home Assistant's MQTT update entity, as of 2024.11 and later: one key that it
does not know, and it drops the message (its mqtt/update.py).
"""

from binascii import crc32
from json import dumps

from micropython import const

_MAX_SUMMARY = const(255)  # Home Assistant cuts it there
# Codes of a channel that say nothing worth reading.
_PLAIN = ("", "new", "current", "waiting")


def state(channel, updates, facts):
    """The state as a message for `publish`; None if it was told before. ``facts``: mqtt_facts.py.

    Retained at rest, so that it lasts; not while a release is on trial.
    """
    installed, version, word, why = facts
    is_at_rest = word in ("", "failed", "refused")
    updates._is_trial = not is_at_rest
    found = {"installed_version": installed, "in_progress": not is_at_rest}
    found["update_percentage"] = None
    if is_at_rest:
        offer = channel.offer
        summary = _describe(channel, version, word, why)
        is_open = channel.state and channel.state[5] & 1 and not channel.is_known
        if offer or word or not is_open:  # else there is an offer, which has to be read yet
            found["latest_version"] = offer.version if offer else installed
    else:
        found["latest_version"] = version
        summary = "%s %s" % (version, word)
    found["release_summary"] = _cut(summary)
    data = dumps(found).encode()
    number = crc32(data)
    if number == updates._told:
        return None
    updates._told = number
    return updates.topic + b"update", data, is_at_rest, 1 if is_at_rest else 0


def _describe(channel, version, word, why):
    """The release summary, in words."""
    offer = channel.offer
    code, error = channel.code, channel.error
    if word and not offer and (not error or code in ("failed", "refused")):
        return "%s %s: %s" % (version, word, why)
    if error:
        text = "%s: %s" % (error.code, error)
        return "%s waits: %s" % (offer.version, text) if offer else text
    if code == "spread":  # its reason has another number each time
        return "%s: its turn comes later" % offer.version
    return "" if code in _PLAIN else channel.reason


def _cut(text):
    return text if len(text) <= _MAX_SUMMARY else text[: _MAX_SUMMARY - 3] + "..."
