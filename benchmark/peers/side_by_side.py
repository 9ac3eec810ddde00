"""Our server and one peer, both up, measured in turns.

The speed of a shared machine changes from minute to minute, by more than servers differ. Two windows that follow each
other see nearly the same machine, so their ratio shows what medians over rounds cannot.
"""

from collections.abc import Sequence

from rich.progress import Progress

from benchmark.config import PeersConfig
from benchmark.outcome import console
from benchmark.peers.entrant import Entrant, Window, measure
from benchmark.results import Figure


def side_by_side(ours: Entrant, peer: Entrant, config: PeersConfig, images: Sequence[bytes]) -> dict[str, Figure]:
    """Figures of `config.pairs` pairs of windows, at the highest concurrency.

    Raises:
        BenchmarkError: a server fails.
    """
    concurrency = max(config.concurrency)
    pairs: list[tuple[Window, Window]] = []
    with (
        ours.running(config, images[0]) as (our_url, our_pid),
        peer.running(config, images[0]) as (peer_url, peer_pid),
        Progress(console=console, transient=True) as progress,
    ):
        for number in progress.track(range(config.pairs), description=f"ours and {peer.server} side by side"):
            asked = [(our_url, our_pid), (peer_url, peer_pid)]
            windows = [
                measure(url, images, pid=pid, concurrency=concurrency, seconds=config.seconds)
                for url, pid in (asked if number % 2 == 0 else reversed(asked))
            ]
            our_window, peer_window = windows if number % 2 == 0 else reversed(windows)
            pairs.append((our_window, peer_window))
    return figures_of_pairs(pairs)


def figures_of_pairs(pairs: Sequence[tuple[Window, Window]]) -> dict[str, Figure]:
    """Ratio and rates from pairs of windows, ours and the peer's, that followed each other."""
    ours, peers = [our for our, _ in pairs], [peer for _, peer in pairs]
    return {
        "images_per_s": Figure.of([each.load.rate_per_s for each in ours], "images/s"),
        "peer_images_per_s": Figure.of([each.load.rate_per_s for each in peers], "images/s"),
        "ratio": Figure.of([our.load.rate_per_s / peer.load.rate_per_s for our, peer in pairs], "ratio"),
        "cpu_ms_per_image": Figure.of([each.cpu_ms_per_image for each in ours], "ms"),
        "peer_cpu_ms_per_image": Figure.of([each.cpu_ms_per_image for each in peers], "ms"),
    }
