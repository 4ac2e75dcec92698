"""`ota.update.OTA`: the class that micropython-esp32-ota has."""

import gc

from .errors import StateError
from .pump import Progress, run, translated
from .slot import SECTOR
from .update import Intake, check_ready, closing, filling, reading_end, taking


class OTA:
    """One update of the next slot, as a context manager: leaving it without an exception switches.

    Give it bytes by `write`, `from_stream`, `from_firmware_file` or `from_json`; then `close`
    checks the whole and makes the slot the next to boot. With ``reboot`` it restarts the board
    10 s later. ``sha`` (hex SHA-256) and ``length`` are those of the file, if known.
    ``verify=False`` does not read back what is written.

    ``force``: update though the running app is not confirmed, and install again what has failed
    before. ``progress(done, total)`` is called after every piece, ``total`` is None while the size
    of the file is not known. ``block_size=4096``: erase by sectors, not by 64 KiB: that is slower,
    and leaves alone what the slot holds already.

    Raises OTAError; nothing has been written then if ``error.code`` tells of the header.
    """

    def __init__(
        self,
        verify=True,
        verbose=True,
        reboot=False,
        sha="",
        length=0,
        *,
        force=False,
        progress=None,
        block_size=0,
    ):
        self.verbose = verbose
        self.reboot = reboot
        self.part = check_ready(force)
        gc.collect()
        self._intake = Intake(
            sha, length, force=force, verify=verify, by_sectors=block_size == SECTOR
        )
        self._console = None
        if verbose:
            from .console import Console

            self._console = Console(self.part)
        self._progress = progress
        self._report = Progress(self._call, self._intake, self._console)
        self._is_over = False

    def _call(self, done, total):
        if self._progress:
            self._progress(done, total)

    def _run(self, generator, what="the update"):
        """Run a generator to its end; what it fails with ends the update."""
        try:
            return run(generator)
        except BaseException as error:
            self.abort(error)
            raise translated(error, self._report, what)

    def write(self, data):
        """Take the next bytes of the file; returns how many. Raises OTAError."""
        if self._is_over:
            raise StateError("closed", "the update is over")
        self._run(self._writing(data))
        return len(data)

    def _writing(self, data):
        self._intake.write(data)
        self._report(self._intake.received, None)
        yield 0

    def close(self):
        """Check the whole, then make the slot the next to boot. Raises OTAError."""
        if self._is_over:
            return
        self._run(closing(self._intake, self._console))
        self._is_over = True
        if self.reboot:
            from .reboot import ota_reboot

            ota_reboot()

    def abort(self, error=None):
        """Stop: `write` and `close` raise StateError, and the running app stays selected."""
        if not self._is_over:
            self._intake.abort(error)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        else:
            self.abort(error)

    def from_stream(self, f, sha="", length=0):
        """Take a file from a stream (`readinto`), to its end; returns the number of bytes."""
        from .local import StreamSource

        return self.from_source(StreamSource(f), sha, length)

    def from_firmware_file(self, url, sha="", length=0, **request_args):
        """Take a file by its name or URL; returns the number of bytes."""
        return self._take(url, sha, length, request_args)

    def from_json(self, url, **request_args):
        """Take the file that a JSON file (`firmware`, `sha`, `length`) names."""
        return self._take(url, "", 0, request_args, True)

    def _take(self, url, sha, length, request_args, is_json=False):
        steps = taking(
            self._intake, url, sha, length, request_args, self._report, self._console, is_json
        )
        return self._run(steps, url)

    def from_source(self, source, sha="", length=0):
        """Take a file from a source (source.py), to its end; returns the number of bytes."""
        return self._run(self._filling(source, sha, length), source.name)

    def _filling(self, source, sha, length):
        yield from reading_end(self._intake, source)
        return (yield from filling(self._intake, source, sha, length, self._report, self._console))
