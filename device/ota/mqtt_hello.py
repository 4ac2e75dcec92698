"""The messages that ota.mqtt.Updates (mqtt.py) publishes once a connection. Loaded for that.

The payload of a discovery is that of Home Assistant's MQTT update entity, as of 2024.11 and later:
one key that it does not know, and it refuses the device (its mqtt/schemas.py).
"""

import sys
from json import dumps

from micropython import const

from . import __version__
from .mqtt import INSTALL

_MAX_NAME = const(64)
_MAX_URL = const(255)


def greeting(channel, updates):
    """The messages of a new connection, as `publish` takes them."""
    messages = []
    if updates.discovery is not None:
        topic = "%s/device/%s/config" % (updates.discovery.strip("/"), updates.id)
        messages.append((topic.encode(), _discovery(updates), True, 1))
    if updates.will:
        messages.append((updates.will[0], b"online", True, 1))
    return messages


def _discovery(updates):
    topic = updates.topic.decode()
    device = {
        "ids": "mpota_" + updates.id,
        "name": str(updates.name)[:_MAX_NAME],
        "mdl": sys.implementation._machine[:_MAX_NAME],
        "mf": "MicroPython",
    }
    device.update(updates.device)
    entity = {
        "p": "update",
        "uniq_id": "mpota_%s_firmware" % updates.id,
        "dev_cla": "firmware",
        "stat_t": topic + "update",
        "cmd_t": topic + "install",
        "pl_inst": INSTALL.decode(),
        "qos": 1,
    }
    if updates.release_url:
        entity["release_url"] = str(updates.release_url)[:_MAX_URL]
    if updates.will:
        entity["avty_t"] = topic + "status"
    return dumps(
        {
            "dev": device,
            "o": {"name": "mpota", "sw": __version__},
            "cmps": {"firmware": entity},
        }
    ).encode()
