"""``mpota push PORT DIR``: the daily loop of somebody who writes a program."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mpota.commands import _report as report
from mpota.commands._sending import with_old_secret
from mpota.errors import MpotaError, UsageError

if TYPE_CHECKING:
    from mpota.push.loop import Made
    from mpota.push.update import Options, Package, Pushed
    from mpota.release.project import Project
    from mpota.release.signing import PrivateKey

_TRACEBACK = "Traceback (most recent call last):"


def push_project(
    port: str,
    directory: Path,
    options: Options,
    key_files: tuple[Path, ...],
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Push a directory once, or again on each save. Raises MpotaError as `mpota push` does."""
    from mpota.push.schemes import has_repl
    from mpota.push.update import HealthCheck
    from mpota.push.wire import check_secret
    from mpota.release.project import Project

    if watch and as_json:
        raise UsageError("--watch is for people, --json is not")
    if options.check.source and not has_repl(port):
        raise UsageError("--check needs a serial port: elsewhere the program checks its health")
    options = with_old_secret(replace(options, confirm_s=options.check.timeout_s))
    check_secret(options)
    project = Project.read(directory)
    keys = _keys(project, key_files)
    if project.check and not options.check.source and has_repl(port):
        check = HealthCheck.parse(project.check, options.check.timeout_s)
        options = replace(options, check=check)
    if not as_json:
        options = replace(options, tell=report.say)
    loop = _Loop(port, directory, options, keys)
    if watch:
        loop.watch(project)
    else:
        loop.push(as_json)


def make_package(directory: Path, key_files: tuple[Path, ...]) -> Package:
    """The release of a project's directory as it is now. Raises MpotaError as `mpota push` does."""
    from mpota.push.loop import Made
    from mpota.release.project import Project

    project = Project.read(directory)
    return Made.of(project, _keys(project, key_files)).package


def _keys(project: Project, files: tuple[Path, ...]) -> tuple[PrivateKey, ...]:
    from mpota.release.key_files import read_private_keys

    return read_private_keys(files or project.keys)


@dataclass
class _Loop:
    port: str
    directory: Path
    options: Options
    keys: tuple[PrivateKey, ...]
    state: str = "nothing was pushed"

    def push(self, as_json: bool = False) -> None:
        """Make the release of the directory as it is now, and bring it to the board."""
        from mpota.push.outcome import pushed_to_json

        start = time.monotonic()
        self.state = "the last push was interrupted, mpota status PORT tells what runs"
        made = self._make()
        self.options.tell(str(made))
        done = self._send(made)
        if as_json:
            report.print_json(pushed_to_json(done))
            return
        seconds = time.monotonic() - start
        self.state = _said(done)
        for line in _last_words(done.console):
            report.say(line)
        spent = f" ({done.sent_size:,} bytes, {seconds:.1f} s)" if done.is_new else ""
        report.say(self.state + spent)

    def _make(self) -> Made:
        from mpota.push.loop import Made
        from mpota.release.project import Project

        return Made.of(Project.read(self.directory), self.keys)

    def _send(self, made: Made) -> Pushed:
        from mpota.push.known_apps import KnownApps
        from mpota.push.schemes import connect

        size = len(made.package.data)
        with (
            connect(self.port) as board,
            report.progress(made.package.name, size) as progress,
        ):
            done = board.push(made.package, replace(self.options, progress=progress))
        KnownApps().add(made.package.app)
        return done

    def watch(self, project: Project) -> None:
        """Push, and again on each save, until Ctrl-C. Errors are printed, and the watch goes on."""
        from mpota.push.loop import saves

        changes = saves(project)
        next(changes)
        self._try(self.push)
        report.say(f"watching {self.directory}; Ctrl-C ends it")
        try:
            for is_changed in changes:
                if is_changed:
                    self._try(self.push)
                    report.say(f"watching {self.directory}")
        except KeyboardInterrupt:
            report.say()
            report.say(f"no longer watching: {self.state}")

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (MpotaError, OSError) as error:
            self.state = f"the last push failed: {error}"
            report.say(f"mpota: {error}", error=True)
            if hint := getattr(error, "hint", None):
                report.say(f"  hint: {hint}", error=True)


def _last_words(console: str) -> list[str]:
    """The error that the program on the board ended with when it was started. It may be healthy all
    the same: --check tells."""
    start = console.rfind(_TRACEBACK)
    lines = console[start:].splitlines()[1:] if start >= 0 else []
    end = next((at for at, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    return ["the program stopped:", *lines[: end + 1]] if lines else []


def _said(done: Pushed) -> str:
    if done.board is None:
        return str(done)
    if not done.is_new:
        return f"the board runs {done.version} already, confirmed: nothing to do"
    if done.is_confirmed:
        return f"the board runs {done.version}, confirmed"
    what = "has it in force" if not done.needs_restart else "restarts into it"
    return f"the board took {done.version} and {what}"
