"""Admission, with a clock of its own: what is let in, what is refused, and when a refusal says to come again."""

import time
from contextlib import ExitStack, contextmanager

import pytest

from serving.gateway.admission import FIRST_IMAGE_LIMIT, MIN_IMAGE_LIMIT, Admission
from serving.gateway.errors import Draining, Overloaded
from serving.settings.limits import Limits

MEGABYTE = 10**6


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds) moves the time on."""
    now_s = 1000.0

    def move(seconds):
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    return move


def admission(**limits):
    return Admission(Limits(**limits))


def begin(gate, images=1, pixels=1000):
    ticket = gate.admit(1000)
    ticket.begin([pixels] * images)
    return ticket


@contextmanager
def finishing(ticket):
    with ticket.image(1000):
        yield
    ticket.release()


def answer_after(gate, clock, seconds, count=1):
    """Images one after the other, each answered after `seconds`."""
    for _ in range(count):
        with finishing(begin(gate)):
            clock(seconds)


def arrived(gate, size):
    ticket = gate.admit(size)
    ticket.arrive(size)
    return ticket


def test_bodies_share_their_bytes(clock):
    gate = admission(max_in_flight_bytes=10 * MEGABYTE, max_body_bytes=6 * MEGABYTE)
    first = arrived(gate, 6 * MEGABYTE)
    with pytest.raises(Overloaded, match="bodies of 6 MiB"):
        gate.admit(5 * MEGABYTE)
    with pytest.raises(Overloaded):
        gate.admit(None)  # of unknown length: may be as large as any
    arrived(gate, 4 * MEGABYTE)
    first.release()
    arrived(gate, 6 * MEGABYTE)


def test_bodies_that_are_only_declared_keep_nobody_out(clock):
    gate = admission(max_in_flight_bytes=10 * MEGABYTE, max_body_bytes=6 * MEGABYTE)
    idle = [gate.admit(6 * MEGABYTE) for _ in range(100)]
    for ticket in idle:
        ticket.arrive(1000)
    arrived(gate, 6 * MEGABYTE)
    with pytest.raises(Overloaded):
        idle[0].arrive(5 * MEGABYTE)
    for ticket in idle:
        ticket.release()
    arrived(gate, 4 * MEGABYTE)


def test_a_body_alone_is_let_in_whatever_its_size(clock):
    gate = admission(max_in_flight_bytes=1, max_in_flight_pixels=1)
    begin(gate, pixels=10**9).release()
    begin(gate, pixels=10**9).release()


def test_images_share_their_pixels(clock):
    gate = admission(max_in_flight_pixels=50 * MEGABYTE)
    first = begin(gate, pixels=40 * MEGABYTE)
    with pytest.raises(Overloaded, match="40 megapixels"):
        begin(gate, pixels=11 * MEGABYTE)
    begin(gate, pixels=10 * MEGABYTE)
    first.release()
    begin(gate, pixels=40 * MEGABYTE)


def test_small_images_pass_where_large_ones_are_refused(clock):
    gate = admission(max_in_flight_pixels=50 * MEGABYTE)
    begin(gate, pixels=50 * MEGABYTE)
    with pytest.raises(Overloaded):
        begin(gate, pixels=5 * MEGABYTE)
    begin(gate, pixels=3 * MEGABYTE)


LARGE = 12 * MEGABYTE


def test_large_images_that_come_late_keep_no_small_ones_out(clock):
    gate = admission(max_wait_s=0.5)
    crowd = [begin(gate, pixels=LARGE) for _ in range(6)]
    for ticket in crowd:
        with ticket.image(LARGE):
            clock(3)
    with pytest.raises(Overloaded, match="6 large images") as refusal:
        begin(gate, pixels=LARGE)
    assert refusal.value.retry_after_s == 18, "at a third of an image a second"
    for _ in range(int(FIRST_IMAGE_LIMIT)):
        begin(gate)
    with pytest.raises(Overloaded, match="64 images") as refusal:
        begin(gate)
    assert refusal.value.retry_after_s == 1, "nothing to do with the large ones"


def test_a_form_of_both_kinds_needs_room_for_both(clock):
    gate = admission()
    ticket = gate.admit(1000)
    ticket.begin([1000, LARGE])
    assert gate.images_in_flight == 2
    ticket.release()
    assert gate.images_in_flight == 0
    early = gate.admit(1000)
    for _ in range(int(FIRST_IMAGE_LIMIT)):
        begin(gate)
    with pytest.raises(Overloaded):
        early.begin([1000, LARGE])
    early.begin([LARGE])


def test_a_form_counts_as_the_images_that_are_worked_on_at_once(clock):
    gate = admission()
    begin(gate, images=64)
    assert gate.images_in_flight == 8


def test_the_limit_falls_when_answers_come_late_and_grows_again(clock):
    gate = admission(max_wait_s=0.5)
    answer_after(gate, clock, seconds=2, count=20)
    assert gate.image_limit == MIN_IMAGE_LIMIT
    for _ in range(200):
        tickets = [begin(gate) for _ in range(gate.image_limit)]
        clock(0.1)
        for ticket in tickets:
            with finishing(ticket):
                pass
    assert gate.image_limit > FIRST_IMAGE_LIMIT


def test_the_limit_stands_while_the_median_nears_max_wait_s(clock):
    """Or the slowest would be far beyond it."""
    gate = admission(max_wait_s=0.5)
    for _ in range(100):
        with ExitStack() as stack:
            for _ in range(gate.image_limit):
                stack.enter_context(finishing(begin(gate)))
            clock(0.4)
    assert gate.image_limit == FIRST_IMAGE_LIMIT


def test_the_limit_does_not_grow_unused(clock):
    gate = admission(max_wait_s=0.5)
    answer_after(gate, clock, seconds=0.001, count=1000)
    assert gate.image_limit == FIRST_IMAGE_LIMIT


def test_more_images_than_the_limit_are_refused_before_and_after_their_body(clock):
    gate = admission()
    late = gate.admit(1000)
    for _ in range(int(FIRST_IMAGE_LIMIT)):
        begin(gate)
    with pytest.raises(Overloaded, match="64 images"):
        gate.admit(1000)
    with pytest.raises(Overloaded):
        late.begin([1000])


def test_retry_after_is_the_backlog_at_the_measured_rate(clock):
    gate = admission()
    answer_after(gate, clock, seconds=0.2, count=100)  # 5 images/s
    clock(3600)  # idle time is not slowness
    for _ in range(20):
        begin(gate)
    assert gate.retry_after_s() == 4  # 20 images at 5/s


def test_retry_after_is_one_second_where_nothing_was_measured(clock):
    assert admission().retry_after_s() == 1


def test_what_failed_counts_neither_as_fast_nor_as_done(clock):
    gate = admission(max_wait_s=0.5)
    ticket = begin(gate)
    with pytest.raises(RuntimeError), ticket.image(1000):
        clock(9)
        raise RuntimeError
    ticket.release()
    assert (gate.images_in_flight, gate.image_limit) == (0, FIRST_IMAGE_LIMIT)


def test_when_closed_nothing_is_let_in_and_what_is_in_goes_on(clock):
    gate = admission()
    gate.stop()
    inside = gate.admit(1000)
    gate.close()
    with pytest.raises(Draining):
        gate.admit(1000)
    inside.begin([1000])
    inside.release()
    assert gate.images_in_flight == 0
