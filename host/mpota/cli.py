"""The ``mpota`` command: the only place that turns an error into text and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click
from click.exceptions import Exit

from mpota import __version__
from mpota.errors import Again, MpotaError, UsageError

# Commands are imported when they run: `mpota show` needs neither esptool nor mpremote.
_GROUPS = {
    "Firmware in files": {
        "show": "what is in a firmware",
        "check": "what the bootloader will do with it",
        "resize": "another flash size or partition table",
        "extract": "the app image or a partition, as a file",
        "write": "files into partitions",
        "table": "convert and validate partition tables",
        "fs": "files in the file system",
        "sample": "a realistic firmware to try things on",
    },
    "Boards by cable, through the ROM loader": {
        "flash": "a firmware onto a board, verified",
        "verify": "a board read back and compared with a file; a release checked",
        "ota": "an update into a board's next slot, by cable",
        "slots": "which app of a board boots, and otadata edited",
        "erase": "partitions of a board made blank",
        "restore": "what a change to a board overwrote, put back",
    },
    "Boards that run MicroPython": {
        "install": "the ota package onto a board, by its REPL",
        "status": "what runs on a board, and what boots next",
        "push": "an update: sent, booted, checked, confirmed",
        "rollback": "a board back to what ran before",
        "deploy": "many boards by one plan",
        "scan": "boards that take updates, on the network and by Bluetooth",
        "ble": "boards that take updates over Bluetooth, and updates for them",
    },
    "Releases": {
        "init": "a project to start from, with a key and all that releases take",
        "keygen": "a key to sign releases with",
        "bundle": "a release in one file: firmware, files, certificates",
        "ls": "what is in a bundle",
        "cat": "a file out of a bundle",
        "delta": "from one firmware to the next, as a small file",
        "manifest": "a release as files to publish",
        "sign": "a bundle, a manifest or an app image",
        "publish": "releases into a channel that boards follow, or to hawkBit",
        "channel": "what boards of a channel do: shares, pauses",
        "serve": "a directory, for boards to update from",
        "web": "a page that installs a firmware at its visitor's USB port",
    },
    "Fleets, by hawkBit or a broker": {
        "rollout": "who gets a release in hawkBit, group after group",
        "fleet": "all boards in one table, and new ones",
    },
    "Without hardware": {
        "rehearse": "a release on a copy of a board, with power cuts",
        "virtual": "a virtual board with serial ports for any tool",
        "demo": "the whole story of an update on the virtual board",
    },
}
_COMMANDS = {name: text for group in _GROUPS.values() for name, text in group.items()}


_HELP_OPTIONS = ("-h", "--help")


def build() -> click.Group:
    """The group of all commands; each is imported when it is asked for."""

    class Commands(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(_COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in _COMMANDS:
                return None
            module = importlib.import_module(f"mpota.commands.{cmd_name}")
            command: click.Command = module.command
            command.name = cmd_name
            command.short_help = _COMMANDS[cmd_name]
            return command

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            for name, group in _GROUPS.items():
                with formatter.section(name):
                    formatter.write_dl(list(group.items()))

        def resolve_command(
            self, ctx: click.Context, args: list[str]
        ) -> tuple[str | None, click.Command | None, list[str]]:
            is_name = bool(args) and not args[0].startswith("-") and not ctx.resilient_parsing
            if is_name and args[0] not in _COMMANDS:
                raise UsageError(*_unknown(args[0]))
            return super().resolve_command(ctx, args)

    @click.group(
        cls=Commands, context_settings={"help_option_names": _HELP_OPTIONS}, epilog=_COMPLETION
    )
    @click.version_option(__version__, "-V", "--version", prog_name="mpota")
    def cli() -> None:
        """Over-the-air updates for MicroPython on ESP32 boards."""

    return cli


_COMPLETION = 'Completion, in bash: eval "$(_MPOTA_COMPLETE=bash_source mpota)"'
_WITH_SUBCOMMANDS = {"fs", "ble", "channel", "rollout", "fleet"}
_GOES_ON = {
    "flash",
    "ota",
    "resize",
    "restore",
    "write",
    "erase",
    "push",
    "deploy",
    "install",
    "publish",
}
_GOES_ON_IN_PARTS = {("fs", "put"), ("fs", "get"), ("ble", "push")}


def _unknown(name: str) -> tuple[str, str]:
    """What is wrong with a command's name, and what may be meant."""
    from difflib import get_close_matches

    near = get_close_matches(name, _COMMANDS, n=2, cutoff=0.6)
    hint = " or ".join(f"mpota {command}" for command in near) or "mpota --help"
    return f"there is no command '{name}'", hint


def _group_help() -> None:
    """`mpota --help` shows the commands in groups, as rich_click knows them."""
    from rich_click import rich_click

    rich_click.COMMAND_GROUPS = {
        "mpota": [{"name": name, "commands": list(group)} for name, group in _GROUPS.items()]
    }


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 bad content, 2 bad usage."""
    arguments = sys.argv[1:] if args is None else args
    if len(arguments) == 1 and arguments[0] in _WITH_SUBCOMMANDS:
        arguments = [*arguments, "--help"]
    if args is None:
        signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The name of a file need not be text in the terminal's encoding.
        sys.stdout.reconfigure(errors="backslashreplace")
    completes = "_MPOTA_COMPLETE" in os.environ  # for the shell, which gives no arguments
    is_help = not (arguments or completes) or any(o in arguments for o in _HELP_OPTIONS)
    if is_help and sys.stdout.isatty():
        # Rich help, but only where help is asked for: importing rich doubles the start-up time.
        from rich_click.patch import patch

        patch()
        _group_help()
    again = shlex.join(["mpota", *arguments])
    try:
        try:
            sys.exit(build().main(arguments, prog_name="mpota", standalone_mode=False))
        finally:
            sys.stdout.flush()  # else a full disk shows only when the interpreter ends
    except MpotaError as error:
        _fail(str(error), error.hint, error.exit_code, error.details, again)
    except Exit as request:
        sys.exit(request.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "mpota"
        _fail(error.format_message(), f"{command} --help", 2)
    except click.ClickException as error:
        _fail(error.format_message(), None, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _interrupted(arguments, again)
    except BrokenPipeError:
        # The reader of our output has gone, as in `mpota show ... | head`.
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        # Commands turn errors of files and ports into MpotaError: only output is left.
        with suppress(OSError):
            sys.stdout.close()
        _fail(f"reading or writing failed: {error}", None, 1)
    except RuntimeError as error:
        # Of an exception while a class is made, as in an import, CPython makes a RuntimeError.
        if not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        _interrupted(arguments, again)


def _interrupted(arguments: list[str], again: str) -> NoReturn:
    hint = Again("the same command again goes on where it stopped")
    # CPython remembers a KeyboardInterrupt in the exec() of a text, with which dataclasses are
    # made, and ends as if nobody had caught it, until the next text (run_eval_code_obj).
    exec("")
    _fail("interrupted", hint if _goes_on(arguments) else None, 130, again=again)


def _terminate(number: int, frame: FrameType | None) -> None:
    """An exception, so that temporary files go and a board is left in order, as with Ctrl-C."""
    sys.exit(128 + number)


def _goes_on(arguments: list[str]) -> bool:
    """Whether the interrupted command goes on where it stopped when it is run again."""
    return bool(arguments) and (
        arguments[0] in _GOES_ON or tuple(arguments[:2]) in _GOES_ON_IN_PARTS
    )


def _fail(
    message: str,
    hint: str | None,
    code: int,
    details: Sequence[str] = (),
    again: str = "",
) -> NoReturn:
    from mpota.commands._report import Tone, say

    say(message, head="mpota: ", tone=Tone.BAD, error=True)
    for line in details:
        say(f"  {line}", error=True)
    if hint:
        # A command to paste stays on one line.
        say(hint, head="  hint: ", tone=Tone.HINT, is_whole=hint.startswith("mpota "), error=True)
    if isinstance(hint, Again):
        say(again, head="  next: ", tone=Tone.HINT, is_whole=True, error=True)
    sys.exit(code)
