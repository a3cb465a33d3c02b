"""An event of threads that can be waited for until somebody waits for it."""

import threading


class NotingEvent(threading.Event):
    """Says when it is waited for."""

    def __init__(self):
        super().__init__()
        self.waited_for = threading.Event()

    def wait(self, timeout=None):
        self.waited_for.set()
        return super().wait(timeout)
