"""``mpota init``: a project to start from."""

from __future__ import annotations

from pathlib import Path

import click

from mpota.commands import _report as report
from mpota.release.key_files import given_passphrase, passphrase_file_option
from mpota.release.new_project import KEY, VERSION, create

_ABOUT = {
    "src/main.py": "starts the program",
    "src/updates.py": "keeps what is healthy, takes the next update",
    "src/app.py": "the program: yours goes here",
    "src/wifi.py": "joins the network that /wifi.json names",
    "wifi.json": "for the boards: fill it in (not in git)",
    "plan.toml": "which boards get what: mpota deploy plan.toml",
    "check.sh": "makes a release and tries it on a virtual board",
    ".github/workflows/release.yml": "does that with each change, and releases tags",
    ".gitignore": "keeps the key out of git",
    "release.pem": "signs releases: keep it secret, and a copy safe",
    "release.pub.pem": "what boards are to trust",
}


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", help="The product's name in its releases (default: that of DIR).")
@click.option("--listen", "has_listen", is_flag=True, help="Takes updates over Wi-Fi as well.")
@click.option("--ble", "has_ble", is_flag=True, help="Takes updates over Bluetooth as well.")
@passphrase_file_option
def command(directory: Path, name: str | None, has_listen: bool, has_ble: bool) -> None:
    """Write a project into DIR that works as it is: a program that confirms its updates, a key.

    Nothing that exists is overwritten. The private key is encrypted if there is a passphrase for
    it, in a file or in MPOTA_KEY_PASSPHRASE.
    """
    ways = tuple(way for way, is_wanted in (("listen", has_listen), ("ble", has_ble)) if is_wanted)
    name = name if name is not None else directory.resolve().name
    made = create(directory, name, ways, given_passphrase())
    paths = [path.relative_to(directory).as_posix() for path in made]
    width = max(map(len, paths))
    for path in paths:
        report.say(f"{path:<{width}}  {_ABOUT[path]}")
    report.say()
    for line in _next_steps(directory, name, ways):
        report.say(line)


def _next_steps(directory: Path, name: str, ways: tuple[str, ...]) -> tuple[str, ...]:
    quote = "'" if " " in name else ""
    parts = "".join(f" --with {way}" for way in ways)
    return (
        f"next, in {directory}, with the port of a board that has room for two apps:",
        f"  mpota install PORT --key {Path(KEY).stem}.pub.pem{parts}",
        f"  mpota bundle --files src --name {quote}{name}{quote} --version {VERSION} --key {KEY}",
        f"  mpota push PORT {quote}{name}-{VERSION}.bundle{quote}",
    )
