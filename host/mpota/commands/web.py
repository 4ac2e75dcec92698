"""``mpota web``: a page that installs a firmware on boards, from a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpota.commands import _report as report
from mpota.commands._options import complete_files, json_option, table_offset_option
from mpota.errors import UsageError
from mpota.units import format_size

if TYPE_CHECKING:
    from mpota.publish.first_install import Build


@click.command()
@click.argument(
    "firmware",
    nargs=-1,
    required=True,
    metavar="FIRMWARE...",
    type=click.Path(path_type=Path),
    shell_complete=complete_files,
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The directory that the page is written to.",
)
@click.option("--name", required=True, help="What is installed, as people know it.")
@click.option("--version", "version_", metavar="V", required=True, help="Its version.")
@click.option("--with-package", is_flag=True, help="Put the ota package on board.")
@click.option(
    "--with", "with_parts", multiple=True, metavar="PART", help="A part of it besides the core."
)
@click.option("--summary", metavar="TEXT", help="What is new, for ESPHome's update entity.")
@click.option("--release-url", metavar="URL", help="Where that is told in full.")
@click.option(
    "--esp-web-tools",
    "script",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The npm package esp-web-tools, unpacked (default: npm fetches it, once).",
)
@click.option("--force", is_flag=True, help="Overwrite the page that is in DIR.")
@json_option
@table_offset_option
def command(
    firmware: tuple[Path, ...],
    output: Path,
    name: str,
    version_: str,
    with_package: bool,
    with_parts: tuple[str, ...],
    summary: str | None,
    release_url: str | None,
    script: Path | None,
    force: bool,
    as_json: bool,
    table_offset: int,
) -> None:
    """Write a page that installs FIRMWARE on boards at its visitor's USB port: for any static host.

    One FIRMWARE, a merged one, for each chip. The page is ESP Web Tools' and fetches nothing from
    elsewhere; a firmware that would not boot is refused. Its manifest is also what ESPHome updates
    from.
    """
    from mpota.publish import esp_web_tools, first_install
    from mpota.release.ota_package import modules_of
    from mpota.virtual.micropython import cache_dir

    if with_parts and not with_package:
        raise UsageError("--with names parts of the package", "give --with-package as well")
    modules_of(with_parts)
    release = first_install.Release(name, version_, summary, release_url)
    first_install.check_directory(output, force=force)
    builds = [
        first_install.read_build(
            path, table_offset, has_package=with_package, with_parts=with_parts
        )
        for path in firmware
    ]
    first_install.check_chips(builds)
    if script is not None:
        files = esp_web_tools.from_directory(script)
    else:
        with report.doing(f"{esp_web_tools.PACKAGE}"):
            files = esp_web_tools.from_npm(cache_dir())
    site = first_install.make_site(release, builds, files)
    first_install.write_site(output, site)
    if as_json:
        report.print_json(first_install.manifest(release, builds))
        return
    _tell(output, builds, site)


def _tell(output: Path, builds: list[Build], site: dict[str, bytes]) -> None:
    rows = [
        (
            build.chip.title,
            part.label,
            f"{part.offset:#x}",
            format_size(len(part.data)),
        )
        for build in builds
        for part in build.parts
    ]
    report.print_table(("Chip", "Part", ">Offset", ">Size"), rows)
    for build in builds:
        if build.package:
            report.say(f"{build.source}: {build.package} files of the ota package are on board")
        if not build.has_slots:
            report.note(
                f"{build.source} has no OTA slots: its boards cannot be updated over the air "
                f"(mpota resize {build.source} --layout ota)"
            )
    size = sum(map(len, site.values()))
    report.written(output, f"{len(site)} files, {format_size(size)}")
    report.say(
        f"to look at it: mpota serve {output} --host 127.0.0.1; boards are reached from https "
        "or localhost only"
    )
