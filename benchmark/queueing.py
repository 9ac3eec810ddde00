"""What random arrivals alone do to latencies: the queue of an ideal server, to compare a real one with."""

import heapq

import numpy as np

REQUESTS = 200_000


def ideal_tail(servers: int, load: float, *, seed: int = 0) -> float:
    """p99 over p50 of the latency where requests of equal work arrive at random (Poisson), by simulation (M/D/c).

    They are served in order, each at once when one of `servers` is free, and nothing else costs time. No real server
    that takes requests one by one has a lower ratio at this load; one that joins them into batches may.

    Args:
        servers: side by side, such as cores.
        load: of what they can do, below 1.
    """
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / (load * servers), REQUESTS))
    free_at = [0.0] * servers
    latencies = []
    for arrived in arrivals.tolist():
        done = max(arrived, heapq.heappop(free_at)) + 1  # the unit of time is the work of a request
        heapq.heappush(free_at, done)
        latencies.append(done - arrived)
    p50, p99 = np.percentile(latencies, (50, 99))
    return float(p99 / p50)
