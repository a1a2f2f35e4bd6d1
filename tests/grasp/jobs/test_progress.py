"""How long a stage still takes, by the steps that it reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grasp.jobs.progress import TimeLeft


@given(
    st.floats(0, 1000),
    st.floats(0.01, 100),
    st.integers(3, 60),
    st.integers(1, 8),
    st.lists(st.floats(0.7, 1.4), min_size=60, max_size=60),
)
def test_it_is_right_within_a_factor_of_two_from_the_second_item_on(
    before: float, pace: float, total: int, batch: int, factors: list[float]
) -> None:
    """Whatever came before the stage, and whatever its first item took besides."""
    left = TimeLeft()
    left(3, 4, moment=before)  # another stage
    times = [before + 500.0]  # when each item was done; the first one warms up
    for factor in factors[1:total]:
        times.append(times[-1] + pace * factor)
    steps = sorted({*range(1, total, batch), total})
    for number, step in enumerate(steps):
        moment = times[step - 1]
        seconds = left(step, total, moment=moment)
        if number == 0:
            assert seconds is None
        else:
            true = times[-1] - moment
            assert true / 2 - 1e-6 <= seconds <= 2 * true + 1e-6


def test_a_stage_that_counts_again_has_a_pace_of_its_own() -> None:
    left = TimeLeft()
    for step in range(5):
        left(step, 4, moment=100.0 * step)
    assert left(0, 4, moment=401.0) is None
    assert left(1, 4, moment=402.0) == pytest.approx(3.0)
