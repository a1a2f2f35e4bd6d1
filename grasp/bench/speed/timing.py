"""Time actions in turn, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Action = Callable[[], object]


def time_in_turn(actions: Mapping[str, Action], *, rounds: int, warm: bool = True) -> Times:
    """Time each action in each of `rounds` rounds; `warm` adds an unmeasured round before."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(-int(warm), rounds):
        # The order alternates, so that no action always follows the most demanding one.
        names = list(actions) if number % 2 else list(actions)[::-1]
        for name in names:
            processor = time.process_time()
            seconds = time_action(actions[name])
            if number >= 0:
                found[name].append((seconds, time.process_time() - processor))
    return Times(found)


def time_action(action: Action) -> float:
    """Seconds an action takes, by the clock."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Times:
    """Clock and processor seconds of each action, one pair per round."""

    def __init__(self, seconds: Mapping[str, list[tuple[float, float]]]) -> None:
        self._seconds = seconds

    def of(self, name: str) -> list[float]:
        """Clock seconds of an action, by round."""
        return [clock for clock, _ in self._seconds[name]]

    def ratio(self, name: str, against: str) -> list[float]:
        """Clock time of one action over that of another, by round."""
        return self._ratio(name, against, 0)

    def processor_ratio(self, name: str, against: str) -> list[float]:
        """The same ratio in processor time on all cores, which excludes waiting."""
        return self._ratio(name, against, 1)

    def _ratio(self, name: str, against: str, which: int) -> list[float]:
        pairs = zip(self._seconds[name], self._seconds[against], strict=True)
        return [one[which] / other[which] for one, other in pairs]
