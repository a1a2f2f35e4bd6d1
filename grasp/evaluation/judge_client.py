"""Ask a judge over HTTP: one question per request, rate-limited, with retries."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType

import httpx2
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from analysis.errors import InputError
from grasp.settings.judge import KEY_VARIABLES, JudgeSettings

AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})
"""HTTP statuses after which the same request may succeed."""

LONGEST_WAIT = 120.0
"""Longest wait between two attempts, in seconds, whatever the server asks for."""

FILTERED, TOO_LONG, EMPTY = "filtered", "too long", "empty"
"""Why there is no reply to one question, though the judge replies to others."""

_REFUSED = {
    FILTERED: (
        "content_filter",
        "content_policy",
        "content management policy",
        "responsibleaipolicyviolation",
        "prohibited_content",
        "data_inspection_failed",
        "moderation",
    ),
    TOO_LONG: ("context_length_exceeded", "maximum context length", "string_above_max_length"),
}
"""Words by which an error is known to be about the one question, in lower case."""

_ABOUT_ONE = (400, 403, 413, 422, 451)
"""HTTP statuses that may be about the one question."""

_SHOWN = 200

_Said = tuple[str, str, tuple[int | None, int | None]]
"""A reply's text, why there is none, and the numbers of input and output tokens."""


class JudgeError(InputError):
    """The judge cannot be asked, refuses, or keeps failing."""


class JudgingStopped(JudgeError):
    """A question was not asked, since another one's error stopped the judging."""


@dataclass(frozen=True)
class Reply:
    """A judge's reply, the attempts it took, and its tokens (None if not reported).

    `missing` says why there is no text: FILTERED, TOO_LONG or EMPTY; "" where there is.
    """

    text: str
    attempts: int
    input_tokens: int | None
    output_tokens: int | None
    missing: str = ""


class Pace:
    """Spaces out turns to respect a rate; a server's request to wait delays all turns."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._gap = 60 / per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock()

    def turn(self) -> float:
        """Seconds to wait until the caller's turn."""
        with self._lock:
            now = self._clock()
            start = max(now, self._next)
            self._next = start + self._gap
            return start - now

    def hold(self, seconds: float) -> None:
        """Allow no turn until `seconds` from now."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


class JudgeClient:
    """A judge at `settings.base_url`; safe to use from several threads.

    The key is read from the environment, sent to that address only, and removed from whatever
    comes back.  `budget` is the largest number of requests, including retries.

    Raises:
        JudgeError: the key would be sent unencrypted to another machine.
    """

    def __init__(self, settings: JudgeSettings, *, budget: int | None = None) -> None:
        self._settings = settings
        self._key = next((os.environ[n] for n in KEY_VARIABLES if os.environ.get(n)), "")
        if self._key and settings.base_url.startswith("http:") and not settings.local:
            raise JudgeError(
                f"The key would be sent to {settings.base_url} unencrypted; use https, or unset "
                f"{' and '.join(KEY_VARIABLES)}."
            )
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # Following redirects could send the key to another address.
        self._client = httpx2.Client(
            headers=headers, timeout=settings.timeout, follow_redirects=False
        )
        self._pace = Pace(settings.requests_per_minute)
        self._budget = budget
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.requests = 0

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        self.stop()
        self._client.close()

    def stop(self) -> None:
        """Send no more requests; those waiting for their turn end with an error."""
        self._stopped.set()

    def ask(self, model: str, text: str) -> Reply:
        """One question, repeated after errors that may pass, with waits that double.

        A question that the judge's provider filters, that is too long, or that keeps getting an
        empty reply, has a reply without text.

        Raises:
            JudgeError: the judge refused, kept failing, or the budget is spent.
        """
        again = Retrying(
            retry=retry_if_exception_type(_Trouble),
            stop=stop_after_attempt(self._settings.attempts),
            wait=self._backoff,
            sleep=self._wait,
            reraise=True,
        )
        try:
            said, missing, counts = again(self._once, model, text)
        except _NoText as problem:
            return Reply("", self._settings.attempts, *problem.counts, missing=EMPTY)
        except _Trouble as problem:
            raise JudgeError(
                f"The judge at {self._settings.base_url} failed {self._settings.attempts} times "
                f"({problem}). Finished judgements are kept; run the same command to continue."
            ) from None
        attempts = int(again.statistics["attempt_number"])
        return Reply(self._clean(said), attempts, *counts, missing=missing)

    def _backoff(self, state: RetryCallState) -> float:
        """Seconds to wait after a failed attempt; 0 if the server already delays all turns."""
        problem = state.outcome.exception() if state.outcome is not None else None
        if isinstance(problem, _Trouble) and problem.after is not None:
            return 0.0
        # Random, so that threads do not retry all at once; results do not depend on it.
        wait = wait_exponential(multiplier=self._settings.backoff)(state)
        return min(wait * random.uniform(0.75, 1.25), LONGEST_WAIT)

    def _once(self, model: str, text: str) -> _Said:
        self._wait(self._pace.turn())
        self._count()
        body = {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "temperature": self._settings.temperature,
            self._settings.limit_name: self._settings.max_tokens,
        }
        try:
            response = self._client.post(f"{self._settings.base_url}/chat/completions", json=body)
        except httpx2.TransportError as error:
            raise _Trouble(type(error).__name__) from error
        if response.status_code in AGAIN:
            after = _retry_after(response)
            if after is not None:
                self._pace.hold(min(after, LONGEST_WAIT))
            raise _Trouble(f"HTTP {response.status_code}", after)
        missing = _why_refused(response)
        if missing:
            return "", missing, (None, None)
        if response.status_code != 200:
            self.stop()  # the judge would refuse all other questions too
            raise JudgeError(
                f"The judge at {self._settings.base_url} refused model {model!r}: HTTP "
                f"{response.status_code}, {self._clean(response.text)[:_SHOWN]!r}; check its "
                f"address, its model and the key in {KEY_VARIABLES[0]}."
            )
        said = _said(response)
        if said is None:
            self.stop()  # and so it would be with all other questions
            raise JudgeError(
                f"The judge {model!r} used all {self._settings.max_tokens} tokens without writing "
                "a word of its reply, as models that reason first do; raise max_tokens in its "
                "settings, or choose another model."
            )
        return said

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise JudgingStopped("Judging was stopped; finished judgements are kept.")

    def _count(self) -> None:
        with self._lock:
            if self._budget is not None and self.requests >= self._budget:
                raise JudgeError(
                    f"The limit of {self._budget} requests is reached, retries included. Finished "
                    "judgements are kept; run the same command again with a larger --max-requests."
                )
            self.requests += 1

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


class _Trouble(Exception):
    """Why an attempt failed that may be repeated; `after` is the wait the server asks for."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after


class _NoText(_Trouble):
    """A reply came without text; `counts` are its tokens."""

    def __init__(self, counts: tuple[int | None, int | None]) -> None:
        super().__init__("a reply without text")
        self.counts = counts


def _said(response: httpx2.Response) -> _Said | None:
    """What a chat completion says; None where its length ended before there was any text."""
    try:
        data = response.json()
        choice = data["choices"][0]
        message = choice["message"]
        text = message.get("content")
        ended = choice.get("finish_reason")
        declined = ended == "content_filter" or message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Trouble("a reply that is not a chat completion") from None
    usage = data.get("usage")
    counts = (_tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))
    if isinstance(text, str) and text.strip():
        return text, "", counts
    if declined:
        return "", FILTERED, counts
    if ended == "length":
        return None
    raise _NoText(counts)


def _why_refused(response: httpx2.Response) -> str:
    """Why the judge's provider refused this question alone; "" where it did not."""
    if response.status_code not in _ABOUT_ONE:
        return ""
    body = response.text.lower()
    found = (why for why, words in _REFUSED.items() if any(word in body for word in words))
    return next(found, "")


def _tokens(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds the server asks to wait, given as a number or a date; None if it does not say."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
