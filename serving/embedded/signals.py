"""How a process of ours learns that it should end."""

import signal


class StopSignal:
    """SIGTERM or Ctrl-C: the first is noted, and heeded where that is safe; the second raises KeyboardInterrupt.

    Python's own handler raises at once, in the middle of whatever runs, such as the constructor of a gRPC client.
    """

    def __init__(self) -> None:
        self._is_received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def note(self) -> None:
        self._is_received = True

    def raise_if_received(self) -> None:
        if self._is_received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: object) -> None:
        self.raise_if_received()
        self.note()
