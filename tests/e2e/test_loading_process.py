"""The real process while it loads: it answers probes, and can be ended, though a read hangs in a thread."""

import os

import pytest

from tests.fifos import read_by_somebody

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.name != "posix", reason="a FIFO holds the process where it loads")]


def test_it_can_be_ended_while_a_checkpoint_cannot_be_read_to_its_end(start, tmp_path):
    endless = tmp_path / "endless.safetensors"
    os.mkfifo(endless)
    service = start(wait=False, device="cpu", weights=endless)
    with read_by_somebody(endless) as fifo:
        service.wait_logged("listening on")
        assert service.get("/livez").status_code == 200
        assert service.get("/readyz").text == "the model is loading\n"
        assert service.stop() == 0
        assert fifo.is_left()
    assert "Traceback" not in service.log
