"""The parts on the cores of this machine: each process decodes a part, runs the model on it and writes the results.

Only names and counts travel between processes. A process that dies is replaced, and its unfinished part is done again.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from bulk.model import Session
from bulk.sources import Part
from bulk.steps import Done, Work, classify, decode
from deit.errors import DataError
from deit.pictures import configure_pillow

logger = logging.getLogger(__name__)

DEATHS_OF_A_PART = 3
"""How many processes may die at the same part: after that, one of its images is probably killing them."""


def classify_here(work: Work, parts: list[Part], processes: int) -> Iterator[Done]:
    """Yields the result of each part, in any order.

    Raises:
        DataError: processes keep dying at a part.
    """
    # Forked from a fresh process: this one has threads, and a fork might copy their locks in the locked state.
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas for its first table, which takes a second; preloaded, that happens once
    context.set_forkserver_preload([__name__, "pandas"])
    left, running = deque(parts), dict[Future[Done], tuple[ProcessPoolExecutor, Part]]()
    deaths = Counter[int]()

    # A pool for each process: its death breaks no other. In Python 3.11 and 3.12 a pool of several may also wait
    # forever, when one process dies while it starts another.
    def start() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(work,))

    def replace(pool: ProcessPoolExecutor, part: Part) -> ProcessPoolExecutor:
        pool.shutdown()
        left.append(part)  # the last, so that one that kills them all comes after the others
        deaths[part.number] += 1
        if deaths[part.number] == DEATHS_OF_A_PART:
            raise DataError(
                f"{DEATHS_OF_A_PART} processes died at the part that begins with {part.names()[0]}: give them more "
                "memory, use fewer --processes, or remove the image that kills them"
            )
        logger.warning("a process died; a new one does its part again")
        return start()

    free = [start() for _ in range(min(processes, len(parts)))]
    try:
        while left or running:
            while left and free:
                pool, part = free.pop(), left.popleft()
                try:
                    running[pool.submit(_classify_part, part)] = pool, part
                except (BrokenProcessPool, ConnectionError, EOFError):  # it or its fork server died before it began
                    free.append(replace(pool, part))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool, part = running[future]
                try:
                    yield future.result()
                except BrokenProcessPool:
                    pool = replace(pool, part)
                del running[future]
                free.append(pool)
    finally:
        for pool in [*free, *(pool for pool, _ in running.values())]:
            pool.shutdown(cancel_futures=True)


_work: Work
_session: Session


def _begin(work: Work) -> None:
    global _work, _session
    threading.Thread(target=_end_with_the_job, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the command
    configure_pillow()
    _work, _session = work, Session(work.model.graph, threads=1)


def _end_with_the_job() -> None:
    """Exit when the job was killed, instead of waiting forever for the next part."""
    if (job := multiprocessing.parent_process()) is not None:
        job.join()
        os._exit(1)


def _classify_part(part: Part) -> Done:
    return classify(_work, _session, decode(_work, part))
