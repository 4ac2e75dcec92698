"""The client against gooseBit, a server that others have written."""

from __future__ import annotations

from pathlib import Path

from mpota.virtual.board import Board

from tests.support import goosebit_server
from tests.support.channels import done
from tests.support.hawkbit import TURN, release, report


def test_a_board_registers_at_goosebit_downloads_and_tells_how_it_ended(
    board: Board, tmp_path: Path
) -> None:
    goosebit_server.need()
    artifact = tmp_path / "pump-2.0.bundle"
    artifact.write_bytes(release())
    with goosebit_server.running(tmp_path, artifact, "2.0") as server:
        client = f"ota.ddi.Client({server.url!r}, 'DEFAULT', 'pump-7', token='secret', pause=0.05)"
        script = f"import ota, ota.ddi\nclient = {client}\n{TURN}"
        assert done(board.run(script)) == "current - there is nothing to do"
        assert server.device("pump-7")["last_state"] == 2  # registered
        run = board.run(script)
        assert (run.traceback, len(run.boots)) == ("", 2), run.console
        assert server.device("pump-7")["last_state"] == 3  # running
        assert done(board.run(script)).startswith("current - ")
        device = server.device("pump-7")
        assert device["last_state"] == 5  # finished
        assert device["sw_version"] == "2.0"
        assert "2.0 runs and is confirmed" in device["last_log"]
    assert report(board) == "confirmed 2.0 1"
