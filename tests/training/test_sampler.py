import pytest
from timm.data.distributed_sampler import RepeatAugSampler

from training.sampler import EpochSampler, Shares, epoch_order


def draws_of(images: int, **changes: int) -> list[list[int]]:
    settings = {"batch_size": 12, "processes": 1, "rank": 0, "accumulation": 1, **changes}
    first_step, repeats = settings.pop("first_step", 0), settings.pop("repeats", 1)
    sampler = EpochSampler(images, Shares(**settings), seed=0, epoch=3, repeats=repeats, first_step=first_step)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return [list(batch) for batch in batches]


def test_an_epoch_is_a_permutation() -> None:
    assert sorted(epoch_order(100, seed=0, epoch=0, repeats=1).tolist()) == list(range(100))


@pytest.mark.parametrize(
    ("images", "distinct", "official_draws", "official_distinct"),
    [  # DeiT rounds the epoch down to a multiple of 256; with fewer images timm's copy falls back to all of them
        (50_000, 16_667, 49_920, 16_640),
        (200, 67, 200, 67),
    ],
)
def test_repeated_augmentation_sees_a_third_of_the_images_three_times(
    images: int, distinct: int, official_draws: int, official_distinct: int
) -> None:
    order = epoch_order(images, seed=0, epoch=0, repeats=3).tolist()
    assert (len(order), len(set(order))) == (images, distinct)
    assert order[0] == order[1] == order[2] != order[3]
    official = list(RepeatAugSampler(range(images), num_replicas=1, rank=0))
    assert (len(official), len(set(official))) == (official_draws, official_distinct)


def test_official_imagenet_epochs_are_143_images_shorter() -> None:
    official = RepeatAugSampler(range(1_281_167), num_replicas=4, rank=0)
    assert len(official) == 320_256
    assert 4 * 320_256 == 1_281_167 - 143


def test_the_runs_seed_counts() -> None:
    assert epoch_order(50, seed=0, epoch=0, repeats=3).tolist() != epoch_order(50, seed=1, epoch=0, repeats=3).tolist()
    assert epoch_order(50, seed=0, epoch=1, repeats=3).tolist() != epoch_order(50, seed=1, epoch=0, repeats=3).tolist()


@pytest.mark.parametrize("repeats", [1, 3])
def test_two_processes_read_what_one_reads_in_two_turns(repeats: int) -> None:
    one = draws_of(40, accumulation=2, repeats=repeats)
    first, second = (draws_of(40, processes=2, rank=rank, repeats=repeats) for rank in (0, 1))
    assert one == [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert len(one) == 6  # three steps of 12; the last four images are dropped


def test_copies_of_an_image_go_to_different_parts_and_are_augmented_on_their_own() -> None:
    draws = []
    for rank in range(3):
        for batch in draws_of(36, repeats=3, processes=3, rank=rank):
            assert len({draw.image for draw in batch}) == len(batch)
            draws += batch
    assert len({draw.image for draw in draws}) == 12
    assert sorted(draw.place for draw in draws) == list(range(36))


def test_an_epoch_goes_on_from_any_step() -> None:
    assert draws_of(40, accumulation=2)[4:] == draws_of(40, accumulation=2, first_step=2)
