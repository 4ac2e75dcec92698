"""Which modules belong to which part of this package, and which parts are installed.

mpota and build_mpy.py read the table from here; a test holds it against the imports.
"""

# Part, its modules; the first of them is what the part is used by. All of them need the core.
PARTS = (
    (
        "core",
        "__init__ app chips commit console drop_in errors failed_version filetype http http_ask "
        "http_connect http_lines http_more http_range http_request image image_errors installed "
        "intake_more local merged otadata package pump reboot recovery resume_download retry "
        "rollback serial_push slot source source_error status tls_trust unload update",
    ),
    (
        "release",
        "release boot chain confirm files keys manifest policy resume_release room self_update "
        "signature tar versions",
    ),
    ("encoded", "frames delta running"),
    ("ble", "ble"),
    ("listen", "listen"),
    ("push", "push_receiver intake push_hello"),
)
NEEDS = {"ble": "push", "listen": "push"}  # push is installed with these, not by its own name


def parts():
    """The names of the parts that are installed, as `mpota install` calls them.

    None where the package is part of the firmware.
    """
    import os
    import sys

    try:
        files = os.listdir(sys.modules[__name__.rpartition(".")[0]].__path__)
    except OSError:
        return None
    found = {name.partition(".")[0] for name in files}
    there = [part for part, modules in PARTS if found.issuperset(modules.split())]
    return [part for part in there if part != "push" and NEEDS.get(part, part) in there]


def missing(error):
    """What an ImportError means: OTAError ("part") for a module that belongs to a part.

    Other errors come back as they are.
    """
    name = str(error).rpartition(".")[2].rstrip("'")
    for part, modules in PARTS:
        if name in modules.split() and "'" + __name__.rpartition(".")[0] + "." in str(error):
            from .errors import OTAError

            if part == "push":
                part = "ble"
            option = "" if part == "core" else " --with " + part
            text = "the part '%s' is not installed: mpota install PORT%s"
            return OTAError("part", text % (part, option))
    return error
