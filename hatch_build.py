"""Build hook: an editable install is compiled at once, as pip compiles what a wheel installs.

Else the first run compiles it, and every run where PYTHONDONTWRITEBYTECODE is set, as in many
container images: 15 ms each time.
"""

from __future__ import annotations

import compileall
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface):
    """Called by hatchling when it has built a wheel; ``version`` is the kind of wheel."""

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version == "editable":
            compileall.compile_dir(Path(self.root, "host", "mpota"), quiet=2)
