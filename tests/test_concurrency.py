"""The limit on requests under way, against simulated servers. Run: pytest tests/test_concurrency.py."""

import heapq

import pytest

from orchestrator.benchmark.concurrency import MAXIMUM, START, Limit, Ticket


def drive(limit, n, latency_of):
    """n requests of a server with a latency for each place among those under way; the time that they took."""
    now, place, under_way, began, answered = 0.0, 0, [], 0, 0
    while answered < n:
        while len(under_way) < limit.now and began < n:
            place = len(under_way) + 1
            began += 1
            ticket = Ticket(limit.generation, place)
            heapq.heappush(under_way, (now + latency_of(place), began, now, ticket))
        end, _, start, ticket = heapq.heappop(under_way)
        now = end
        answered += 1
        limit.answered(ticket, end - start)
    return now


def test_a_server_that_takes_any_number_is_given_the_most():
    limit = Limit()
    drive(limit, 3000, lambda place: 1.0)
    assert limit.now == MAXIMUM


def test_a_server_that_answers_one_at_a_time_is_not_crowded():
    """The n-th in the queue waits n times as long: more of them bring nothing."""
    limit = Limit()
    drive(limit, 3000, lambda place: 0.5 * place)
    assert limit.now <= 2 * START


@pytest.mark.parametrize("room", [20, 48, 100])
def test_a_server_with_room_for_some_is_filled_and_not_much_more(room):
    """Up to `room` cost nothing; beyond it, each waits for its turn."""
    limit = Limit()
    drive(limit, 20_000, lambda place: 1.0 if place <= room else place / room)
    assert room * 0.8 <= limit.now <= room * 2


def test_it_starts_small_and_takes_few_rounds_to_the_most():
    limit = Limit()
    assert limit.now == START
    took = drive(limit, 1000, lambda place: 1.0)
    assert took <= 9, "rounds; 256 at once from the beginning would take 4"


def test_a_busy_server_is_asked_less_and_one_rush_counts_once():
    limit = Limit()
    drive(limit, 3000, lambda place: 1.0)
    tickets = [Ticket(limit.generation, place) for place in range(1, 257)]
    for ticket in tickets:
        limit.push_back(ticket)
    assert (limit.now, limit.pushed_back) == (int(MAXIMUM * 0.7), 1)
    for _ in range(40):
        limit.push_back(Ticket(limit.generation, 1))
    assert limit.now == 1, "never none"


def test_it_rises_again_when_the_server_is_well():
    limit = Limit()
    for _ in range(20):
        limit.push_back(Ticket(limit.generation, 1))
    assert limit.now == 1
    drive(limit, 30_000, lambda place: 1.0)
    assert limit.now > 100


def test_a_fixed_limit_stays():
    limit = Limit(5)
    drive(limit, 500, lambda place: 1.0)
    limit.push_back(Ticket(0, 1))
    assert (limit.now, limit.most) == (5, 5)


def test_answers_at_no_time_at_all_do_no_harm():
    limit = Limit()
    drive(limit, 1000, lambda place: 0.0)
    assert START <= limit.now <= MAXIMUM
