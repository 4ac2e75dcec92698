"""Names of boards in the air: anybody may send any."""

from __future__ import annotations

import pytest
from mpota import cli
from mpota.push import ble

from tests.support import radio as reach
from tests.support.radio import SECRET, Powered, backend, in_reach, peripheral, stop

HOSTILE = "\x1b]0;own\x07\r\n\u202ex\x9b2J"


def test_a_hostile_name_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reach, "NAME", HOSTILE)
    script = peripheral(f", secret={SECRET!r}")
    with in_reach() as (radio, board):
        monkeypatch.setattr(ble, "OWN_BLUETOOTH", backend(radio))
        powered = Powered(board, script)
        for arguments in (["scan", "--timeout", "2"], ["push", "no one", "-", "--timeout", "1"]):
            with pytest.raises(SystemExit):
                cli.main(["ble", *arguments])
        out, err = capsys.readouterr()
        assert r"\x1b]0;own\x07\r\n\u202ex\x9b2J  " in out
        assert all(line.isprintable() for line in (out + err).splitlines())
        stop(radio, secret=SECRET.encode())
        powered.wait()
