"""Logs early refusals, summarised in a line now and then, because a refusal must cost almost nothing."""

import logging
import time
from collections import Counter

request_logger = logging.getLogger("serving.request")

LINE_EVERY_S = 10.0


class Refusals:
    """Counts refusals and logs the totals: the first one at once, further ones at most every LINE_EVERY_S."""

    def __init__(self) -> None:
        self._statuses: Counter[int] = Counter()
        self._clients: Counter[str] = Counter()
        self._last_line_s = float("-inf")

    def count(self, status: int, client: str) -> None:
        self._statuses[status] += 1
        if client in self._clients or len(self._clients) < 1000:
            self._clients[client] += 1
        if time.monotonic() - self._last_line_s >= LINE_EVERY_S:
            self.log()

    def log(self) -> None:
        """Log what has been refused since the last line."""
        if not self._statuses:
            return
        self._last_line_s = time.monotonic()
        by_status = {f"status_{status}": count for status, count in sorted(self._statuses.items())}
        most = ", ".join(f"{client} {count}" for client, count in self._clients.most_common(3))
        request_logger.info("refused %d requests", self._statuses.total(), extra={**by_status, "clients": most})
        self._statuses.clear()
        self._clients.clear()
