"""The real server process over an engine with faults: a picture of a fault's colour sets it off.

python -m tests.faulty_server    (settings: RESNET_*; FAULTY_FOLDER: what hangs makes the file `hanging` there and
                                  goes on when it finds the file `release`; while a fault's name stands in the file
                                  `always`, every batch has it; FAULTY_LOAD: if set, loading hangs; FAULTY_OVERLAPS:
                                  if set, the engine computes a full batch beside the one before)
"""

import os
import time
from pathlib import Path

import numpy as np

from app import imaging
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.launch import create_service, serve
from app.logs import set_up_logging
from app.settings import Settings
from tests.fakes import FakeEngine

FAULTS = ("exception", "no memory", "no memory for two", "broken", "hang", "thread dies", "batcher dies")
DECODE_FAULTS = {"thread dies": (300, 301), "hang": (301, 300)}


def colour_of(fault):
    return 255, 0, FAULTS.index(fault)


class Poison(np.ndarray):
    """Passes for an answer until it is handed out."""

    def __getitem__(self, _key):
        raise LookupError("this array cannot be sliced")

    def round(self, *_):
        return self


def hang():
    folder = Path(os.environ["FAULTY_FOLDER"])
    (folder / "hanging").touch()
    while not (folder / "release").exists():
        time.sleep(0.01)


class FaultyEngine(FakeEngine):
    def run(self, images, nearly_done=None):
        if nearly_done is not None:
            nearly_done()
        answer = super().run(images)
        fault = lasting_fault() or next((found for found in map(fault_of, images) if found), None)
        if fault == "exception":
            raise RuntimeError("/secret/path at 0x7f00")
        if fault == "no memory" or (fault == "no memory for two" and len(images) > 1):
            raise EngineOutOfMemory
        if fault == "broken":
            raise EngineBroken("device lost")
        if fault == "hang":
            hang()
        if fault == "thread dies":
            raise SystemExit(3)
        return answer.view(Poison) if fault == "batcher dies" else answer


def lasting_fault():
    try:
        return (Path(os.environ["FAULTY_FOLDER"]) / "always").read_text()
    except FileNotFoundError:
        return None


def fault_of(image):
    red, green, blue = (int(channel[0, 0]) for channel in image)
    return FAULTS[blue] if (red, green) == (255, 0) and blue < len(FAULTS) else None


def faulty_finish(image, size, finish=imaging._finish):
    if image.size == DECODE_FAULTS["thread dies"]:
        raise SystemExit(3)
    if image.size == DECODE_FAULTS["hang"]:
        hang()
    return finish(image, size)


def load(settings):
    if "FAULTY_LOAD" in os.environ:
        hang()
    engine = FaultyEngine(batch_sizes=settings.batch_sizes or (1, 32))
    engine.overlaps = "FAULTY_OVERLAPS" in os.environ
    return engine


if __name__ == "__main__":
    settings = Settings()
    set_up_logging(settings.log_level, settings.log_format)
    imaging._finish = faulty_finish
    os._exit(serve(create_service(settings, load)))
