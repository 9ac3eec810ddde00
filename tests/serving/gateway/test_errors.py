"""The table of errors holds together."""

from typing import get_args

from deit.errors import Refusal
from serving.gateway.errors import PROBLEMS, Draining, Internal, NotReady, Overloaded, Problem, documented


def test_every_problem_is_complete_and_has_its_own_name():
    assert len(PROBLEMS) == len(Problem.__subclasses__())
    for name, problem in PROBLEMS.items():
        assert 400 <= problem.status < 600
        assert name == name.lower().replace(" ", "-")
        assert problem.__doc__
        assert problem.title


def test_every_refusal_of_a_picture_is_a_problem_that_blames_the_caller():
    assert all(400 <= PROBLEMS[refusal].status < 500 for refusal in get_args(Refusal))


def test_a_problem_is_answered_as_rfc_9457_says():
    response = Overloaded("the queue is full", queue=64).response()
    assert response.media_type == "application/problem+json"
    assert response.headers["retry-after"] == "1"
    assert Overloaded("the queue is full", retry_after_s=7).response().headers["retry-after"] == "7"
    assert Overloaded("the queue is full", queue=64).body() == {
        "type": "/problems/overloaded",
        "title": "The server is overloaded",
        "status": 429,
        "detail": "the queue is full",
        "queue": 64,
    }


def test_problems_of_one_status_are_documented_together():
    responses = documented(NotReady, Draining, Internal)
    assert set(responses) == {503, 500}
    assert len(responses[503]["content"]["application/problem+json"]["examples"]) == 2
    assert "Retry-After" in responses[503]["headers"]
