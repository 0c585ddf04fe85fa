"""When a run logs, validates, saves and previews: after every so many steps, counted from 1."""

from megatv.train import _due


def test_what_is_due_after_every_third_step_and_what_is_never() -> None:
    """Runs of tests save after every step, where a count that is off by one does not show."""
    assert [step for step in range(1, 10) if _due(step, 3)] == [3, 6, 9]
    assert not any(_due(step, 0) for step in range(10))
    assert all(_due(step, 1) for step in range(1, 10))
