"""gooseBit with a file in its store, and a rollout of it: goosebit_server.py runs it, with JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any


async def _fill(path: Path, version: str) -> None:
    """What its upload would do, which takes only .swu and RAUC files."""
    from goosebit.db.config import TORTOISE_CONF
    from goosebit.db.models import Hardware, Rollout, Software
    from tortoise import Tortoise

    await Tortoise.init(config=TORTOISE_CONF)
    await Tortoise.generate_schemas()
    data = path.read_bytes()
    digest = hashlib.sha1(data).hexdigest()
    software = await Software.create(
        uri=path.as_uri(), version=version, size=len(data), hash=digest, image_format=0
    )
    hardware = await Hardware.create(model="default", revision="default")
    await software.compatibility.add(hardware)
    await Rollout.create(name="all", feed="default", software=software)
    await Tortoise.close_connections()


def main(options: dict[str, Any]) -> None:
    import uvicorn

    asyncio.run(_fill(Path(options["path"]), options["version"]))
    uvicorn.run("goosebit:app", fd=options["fd"], log_level="warning")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
