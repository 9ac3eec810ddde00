"""The parts on the cores of this machine: each process decodes a part, runs the model on it and writes the results.

Only names and counts travel between processes. A process that dies is replaced, and its unfinished part is done again.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from bulk.model import Session
from bulk.sources import Part
from bulk.steps import Done, Work, classify, decode
from deit.errors import DataError
from deit.pictures import configure_pillow

logger = logging.getLogger(__name__)

ROUNDS_WITHOUT_A_PART = 3
"""How often in a row processes may die before any part is done: after that, an image is probably killing them."""


def classify_here(work: Work, parts: list[Part], processes: int) -> Iterator[Done]:
    """Yields the result of each part, in any order.

    Raises:
        DataError: processes keep dying.
    """
    # Forked from a fresh process: this one has threads, and a fork might copy their locks in the locked state.
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas for its first table, which takes a second; preloaded, that happens once
    context.set_forkserver_preload([__name__, "pandas"])
    left = {part.number: part for part in parts}
    rounds = 0
    while left:
        pool = ProcessPoolExecutor(min(processes, len(left)), context, initializer=_begin, initargs=(work,))
        try:
            futures = {pool.submit(_classify_part, part): part for part in left.values()}
            for future in as_completed(futures):
                done = future.result()
                rounds = 0
                del left[futures[future].number]
                yield done
        except BrokenProcessPool:
            rounds += 1
            if rounds == ROUNDS_WITHOUT_A_PART:
                raise DataError(
                    f"the processes keep dying with {len(left)} parts left; the first one begins with "
                    f"{next(iter(left.values())).names()[0]}: give them more memory, or use fewer --processes"
                ) from None
            logger.warning("a process died; new ones continue with the %d parts left", len(left))
        finally:
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
