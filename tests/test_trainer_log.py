"""LLaMA-Factory's trainer_log.jsonl as it grows, and as one curve. Run: pytest tests/test_trainer_log.py."""

import json

import pytest

from orchestrator.runs.trainer_log import TrainerLog, close_torn_line, latest, logged_losses


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trainer_log.jsonl"


def lines(*steps, **more):
    return "".join(
        json.dumps({"current_steps": step, "total_steps": 9, "loss": step / 10, **more}) + "\n" for step in steps
    )


def test_a_line_is_an_event_once_it_is_whole(path):
    log = TrainerLog(path)
    assert log.new_events() == []
    path.write_text(lines(1) + '{"current_steps": 2, "lo')
    assert [event["current_steps"] for event in log.new_events()] == [1]
    with path.open("a") as file:
        file.write('ss": 0.2}\n[1]\nnull\n')
    assert log.new_events() == [{"current_steps": 2, "loss": 0.2}]
    assert log.new_events() == []


def test_steps_that_were_trained_again_count_as_they_were_the_last_time_and_the_first_ten_are_kept(path):
    evaluated = '{"current_steps": 3, "total_steps": 9, "eval_loss": 5.0}\n'
    path.write_text(lines(1, 2, 3) + evaluated + lines(4, 5) + lines(3, 4, loss=7.0) + lines(4, loss=8.0) + lines(5, 6))
    assert logged_losses(path) == [0.1, 0.2, 7.0, 8.0, 0.5, 0.6]
    path.write_text(lines(*range(1, 15)))
    assert logged_losses(path) == [step / 10 for step in range(1, 11)]


def test_the_latest_event_has_the_last_loss(path):
    events = [{"current_steps": 3, "loss": 1.5, "lr": 1}, {"current_steps": 4, "total_steps": 4}, {"percentage": 100}]
    assert latest(events) == {"current_steps": 4, "total_steps": 4, "loss": 1.5, "lr": 1}
    assert latest([]) is None


@pytest.mark.parametrize("torn", ["", '{"current_steps": 3, "lo'])
def test_a_line_that_a_killed_writer_tore_costs_the_next_one_nothing(path, torn):
    path.write_text(lines(1, 2) + torn)
    size = close_torn_line(path)
    assert size == path.stat().st_size == len(lines(1, 2) + torn) + bool(torn)
    with path.open("a") as file:
        file.write(lines(3))
    assert logged_losses(path) == [0.1, 0.2, 0.3]
    assert TrainerLog(path, size).new_events()[0]["current_steps"] == 3
