"""A short form of `make chaos`. Run: pytest tests/test_chaos.py."""

import random

from tests.chaos import chaos


def test_runs_that_are_hit_at_random_come_to_their_end_and_leave_nothing(workshop):
    """Another seed each time; a failure names it."""
    seed = random.randrange(10**6)
    figures = chaos(workshop, kills=6, seed=seed, budget_s=40)
    assert figures.faults == [], (seed, figures.lines())
    assert figures.runs == figures.same_end > 0
