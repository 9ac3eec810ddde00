"""Which requests a candidate gets, and how an option names it."""

import pytest

from deit.candidate import CandidateModel, candidates_of, is_in_share

IDS = [f"request-{number}" for number in range(20_000)]


@pytest.mark.parametrize("percent", [0, 0.5, 5, 50, 100])
def test_a_share_is_as_large_as_it_is_said_to_be(percent: float) -> None:
    taken = sum(is_in_share(each, percent, of="candidate") for each in IDS)
    deviation = (len(IDS) * percent / 100 * (1 - percent / 100)) ** 0.5
    assert abs(taken - len(IDS) * percent / 100) <= 4 * deviation


def test_who_is_in_a_share_stays_in_it_when_it_grows() -> None:
    small, large = (
        {each for each in IDS if CandidateModel(mode="canary", percent=percent, model="next").takes(each)}
        for percent in (5, 10)
    )
    assert small < large


def test_shares_of_different_things_are_independent() -> None:
    both = sum(is_in_share(each, 50, of="candidate") and is_in_share(each, 50, of="capture") for each in IDS)
    assert 0.23 < both / len(IDS) < 0.27


def test_an_option_names_models_and_versions() -> None:
    found = candidates_of("shadow", "deit=deit_next:5, other=other/3:12.5")
    assert found == {
        "deit": CandidateModel(mode="shadow", percent=5, model="deit_next"),
        "other": CandidateModel(mode="shadow", percent=12.5, model="other", version="3"),
    }
    assert candidates_of("canary", "") == {}


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        ("deit", "MODEL=CANDIDATE:PERCENT"),
        ("deit=next", "MODEL=CANDIDATE:PERCENT"),
        ("deit=next/01:5", "MODEL=CANDIDATE:PERCENT"),
        ("deit=next:-5", "MODEL=CANDIDATE:PERCENT"),
        ("deit=next:101", "0 to 100"),
        ("deit=deit:5", "names the model itself"),
        ("deit=next:5,deit=other:5", "named twice"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(text: str, finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        candidates_of("canary", text)


@pytest.mark.parametrize("text", ["{", '{"mode": "canary"}', '{"mode": "x", "percent": 5, "model": "next"}'])
def test_a_description_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        CandidateModel.from_json(text)
