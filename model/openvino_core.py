"""What all of a process' uses of OpenVINO share. Nothing here needs torch."""

from __future__ import annotations

from functools import cache

import openvino


@cache
def core() -> openvino.Core:
    """Return the process's one OpenVINO core, which is never given back.

    The CPU plugin gives the thread that loads it a signal stack of its own, and unmaps it when the last core goes, from
    whatever thread that happens in: the next signal to the first thread would then end the process.
    """
    return openvino.Core()
