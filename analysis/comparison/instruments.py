"""What a prompt set measured: both directions, wordings and agreement, never a single score.

An item may be asked as a statement and as its reversal, each in several wordings.  A high score
means the same end in both.  A model that agrees with everything scores high on statements and low
on reversals, so the mean of both shows its leaning, and their difference its agreement bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from analysis.comparison.evaluation import MORE_COLUMNS
from analysis.statistics.intervals import Interval, bootstrap_mean, rate
from analysis.store.records import Split
from analysis.tables import align_columns
from analysis.text import interval_text, items_text, number_text
from analysis.values import Json, TableRow

STATEMENT, REVERSAL = "statement", "reversal"

_ONE = ["instrument", "scorer", "role", "group", "end"]
_BLANK: dict[str, str | int] = {
    "sample": 0,
    "instrument": "",
    "direction": "",
    "paraphrase": 0,
    "end": "",
}


@dataclass(frozen=True)
class Direction:
    """Results for statements, for reversals, or for prompts that are neither ("").

    `score` is the mean over answers, with an interval over items.  `spread` is the standard
    deviation over the wordings of an item, averaged over items with several wordings (NaN if
    there are none); `wordings` has the mean over items for each wording.
    """

    direction: str
    score: Interval
    spread: float
    wordings: list[float]
    missing: int


@dataclass(frozen=True)
class Reading:
    """Results for one group of a prompt set, from one scorer.

    `agreement` is the acquiescence bias: the rate of agreement over statements and reversals,
    minus ½.  It is 0 if every agreement with a statement is a disagreement with its reversal,
    ½ if the model agrees with everything, and None unless both were asked.
    """

    instrument: str
    scorer: str
    role: str
    group: str
    end: str
    items: int
    directions: list[Direction]
    agreement: Interval | None

    @property
    def both(self) -> bool:
        """Whether statements and reversals were asked."""
        return {STATEMENT, REVERSAL} <= {one.direction for one in self.directions}

    def plain(self) -> Json:
        """The reading as JSON values."""
        return asdict(self)


def instrument_readings(samples: pd.DataFrame, *, split: Split) -> list[Reading]:
    """What each named prompt set measured, by group, in the order of the samples.

    Args:
        samples: with the columns of `analysis.comparison.evaluation.COLUMNS` and, if known,
            MORE_COLUMNS.
        split: of the prompts.
    """
    chosen = _complete(samples[samples["split"] == split])
    named = chosen[chosen["instrument"] != ""]
    return [
        _reading(dict(zip(_ONE, key, strict=True)), rows)
        for key, rows in named.groupby(_ONE, sort=False)
    ]


def wording_table(samples: pd.DataFrame, *, split: Split) -> pd.DataFrame:
    """One row per item, direction and wording of the named sets.

    Columns: instrument, scorer, role, group, end, cluster, direction, paraphrase, score (mean over
    answers, NaN if none has a score), low and high (NaN for a single answer), n, missing,
    item_mean (over the item's wordings in that direction) and spread (their standard deviation,
    NaN for a single wording).
    """
    chosen = _complete(samples[samples["split"] == split])
    named = chosen[chosen["instrument"] != ""]
    keys = [*_ONE, "cluster", "direction", "paraphrase"]
    rows = [
        dict(zip(keys, key, strict=True)) | _cell(group["score"])
        for key, group in named.groupby(keys, sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*keys, "score", "low", "high", "n", "missing"])
    items = table.groupby([*_ONE, "cluster", "direction"], sort=False)["score"]
    return table.assign(item_mean=items.transform("mean"), spread=items.transform("std"))


def text_lines(found: Sequence[Reading], *, base: Sequence[Reading] = ()) -> list[str]:
    """The readings as text, a few lines each; `base` are those of the base model, set beside."""
    before = {_place(one): _rows(one) for one in base}
    lines: list[str] = []
    for one in found:
        end = f", 1 = {one.end}" if one.end else ""
        lines.append(f"{one.instrument}, {one.group}: scorer {one.scorer}, {one.items} items{end}")
        beside = before.get(_place(one), {})
        rows = [
            (name, f"base {beside[name]}", text) if name in beside else (name, text)
            for name, text in _rows(one).items()
        ]
        lines += [f"  {line}" for line in align_columns(rows)]
    return lines


def _place(one: Reading) -> tuple[str, ...]:
    return (one.instrument, one.scorer, one.role, one.group, one.end)


def _rows(one: Reading) -> dict[str, str]:
    rows = {each.direction or "score": _direction_text(each) for each in one.directions}
    if one.agreement is not None:
        rows["agreement"] = _interval(one.agreement, sign=True)
    return rows


def _complete(samples: pd.DataFrame) -> pd.DataFrame:
    return samples.assign(**{n: _BLANK[n] for n in MORE_COLUMNS if n not in samples})


def _cell(scores: pd.Series) -> dict[str, float]:
    known = scores.dropna()
    if known.empty:
        return {
            "score": math.nan,
            "low": math.nan,
            "high": math.nan,
            "n": 0,
            "missing": len(scores),
        }
    # Answers to one prompt are independent draws; a single one gives no interval.
    found = rate(known) if len(known) > 1 else None
    return {
        "score": float(known.mean()),
        "low": found.low if found else math.nan,
        "high": found.high if found else math.nan,
        "n": len(known),
        "missing": int(scores.isna().sum()),
    }


def _reading(named: TableRow, rows: pd.DataFrame) -> Reading:
    order = [way for way in (STATEMENT, REVERSAL, "") if (rows["direction"] == way).any()]
    found = [_direction(way, rows[rows["direction"] == way]) for way in order]
    both = {STATEMENT, REVERSAL} <= set(order)
    return Reading(
        **named,
        items=rows["cluster"].nunique(),
        directions=found,
        agreement=_agreement(rows) if both else None,
    )


def _direction(way: str, rows: pd.DataFrame) -> Direction:
    known = rows.dropna(subset="score")
    means = known.groupby(["cluster", "paraphrase"], sort=False)["score"].mean()
    spreads = means.groupby("cluster").std(ddof=1).dropna()
    by_wording = means.groupby("paraphrase").mean()
    return Direction(
        direction=way,
        score=rate(known["score"].to_numpy(float), known["cluster"].to_numpy(str)),
        spread=float(spreads.mean()) if len(spreads) else math.nan,
        wordings=[float(value) for value in by_wording],
        missing=int(rows["score"].isna().sum()),
    )


def _agreement(rows: pd.DataFrame) -> Interval:
    """Mean over items with both directions of (agree(statement) + agree(reversal)) / 2 − ½.

    A reversal's score is 1 minus its agreement, so this equals (statement − reversal) / 2.
    """
    means = rows.pivot_table(index="cluster", columns="direction", values="score", aggfunc="mean")
    means = means.reindex(columns=[STATEMENT, REVERSAL]).dropna()
    halves = (means[STATEMENT] - means[REVERSAL]).to_numpy(float) / 2
    return bootstrap_mean(halves)


def _direction_text(one: Direction) -> str:
    each = ", ".join(map(number_text, one.wordings))
    spread = "" if math.isnan(one.spread) else f"  spread {number_text(one.spread)}"
    missing = f"  missing {one.missing}" if one.missing else ""
    by_wording = f"  by wording {each}" if len(one.wordings) > 1 else ""
    size = items_text(one.score.n, one.score.items)
    return f"{_interval(one.score)}  {size}{by_wording}{spread}{missing}"


def _interval(found: Interval, *, sign: bool = False) -> str:
    return interval_text(
        found.value, found.low, found.high, show=lambda value: number_text(value, sign=sign)
    )
