"""The ``mpota`` command: the only place that turns an error into text and an exit code."""

from __future__ import annotations

import importlib
import sys

import rich_click as click
from click.exceptions import Exit

from mpota import __version__
from mpota.errors import MpotaError

# Commands are imported when they run: `mpota show` needs neither esptool nor mpremote.
_COMMANDS = {
    "show": "what is in a firmware",
    "check": "what the bootloader will do with it",
    "resize": "another flash size or partition table",
    "extract": "the app image or a partition, as a file",
    "write": "files into partitions",
    "table": "convert and validate partition tables",
}


class _Commands(click.RichGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"mpota.commands.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mpota")
def cli() -> None:
    """Over-the-air updates for MicroPython on ESP32 boards."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 bad content, 2 bad usage."""
    try:
        sys.exit(cli.main(args, prog_name="mpota", standalone_mode=False))
    except MpotaError as error:
        _fail(str(error), error.hint, error.exit_code)
    except Exit as request:
        sys.exit(request.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "mpota"
        _fail(error.format_message(), f"{command} --help", 2)
    except click.ClickException as error:
        _fail(error.format_message(), None, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", None, 130)
    except BrokenPipeError:
        # The reader of our output has gone, as in `mpota show ... | head`.
        sys.stderr.close()
        sys.exit(1)


def _fail(message: str, hint: str | None, code: int) -> None:
    print(f"mpota: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    sys.exit(code)
