"""Every widget key and URL parameter of the dashboard, and how they are read.

Selections live in the URL, so that a link reopens the same view.  Anyone can write a URL, so a
value counts only if it is one of the available options.  A selection missing from the URL comes
from this session, else from a default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Final, Literal

import streamlit as st

from dashboard.style.markup import literal

Parameter = Literal[
    "run", "family", "module", "factor", "layer", "evidence", "job", "prompt", "split", "role",
    "group",
]  # fmt: skip
RUN: Final = "run"
FAMILY: Final = "family"
MODULE: Final = "module"
FACTOR: Final = "factor"
LAYER: Final = "layer"
EVIDENCE: Final = "evidence"
JOB: Final = "job"
PROMPT: Final = "prompt"
SPLIT: Final = "split"
ROLE: Final = "role"
GROUP: Final = "group"


class Key:
    """Widget keys; Streamlit also makes each the CSS class `st-key-<key>` of its widget."""

    # every page
    RUN = "run-picker"
    WRONG_LINK = "wrong-link"
    ANNOTATOR = "annotator"
    ANNOTATOR_KEPT = "annotator-kept"
    ANNOTATOR_ASKED = "annotator-asked"
    # workspace
    ADAPTER_PATH = "adapter-path"
    ADAPTER_LOOK = "adapter-look"
    ADAPTER_NAME = "adapter-name"
    ADAPTER_STEPS = "adapter-steps"
    ADAPTER_LOW_RANK = "adapter-low-rank"
    ADAPTER_BASE = "adapter-base"
    ADAPTER_OUT = "adapter-out"
    ADAPTER_ADD = "adapter-add"
    REPORT_OF = "report-of"
    ALL_SETTINGS = "all-settings"
    # spectra
    MAP = "spectra-map"
    MAP_MEASURE = "spectra-measure"
    MODULE = "spectra-module"
    MEMBER = "spectra-member"
    MEMBERS = "spectra-members"
    LOW_RANK = "spectra-low-rank"
    TRAJECTORY = "spectra-trajectory"
    TRAJECTORY_ON = "spectra-trajectory-on"
    TRAJECTORY_SCREE = "spectra-trajectory-scree"
    MODULE_SCREE = "spectra-module-scree"
    SIDE = "spectra-side"
    UP_TO = "spectra-up-to"
    LOG = "spectra-log"
    OVERLAY = "spectra-overlay"
    FACTOR_SCREE = "spectra-factor-scree"
    # factors
    FACTOR_LIST = "factor-list"
    FACTOR = "factor-picker"
    FACTOR_PREVIOUS = "factor-previous"
    FACTOR_NEXT = "factor-next"
    EVIDENCE = "factor-evidence"
    EVIDENCE_SET = "factor-evidence-set"
    EVIDENCE_START = "factor-evidence-start"
    LAYER = "factor-layer"
    HISTOGRAM = "factor-histogram"
    HISTOGRAM_BY = "factor-histogram-by"
    SHIFT = "factor-shift"
    SHIFT_MAP = "factor-map"
    SHIFT_TABLE = "factor-map-table"
    EXAMPLES_BY = "factor-examples-by"
    EXAMPLES_OF = "factor-examples-of"
    DOSE = "factor-dose"
    DOSE_METRIC = "factor-dose-metric"
    DOSE_PROMPT = "factor-dose-prompt"
    ROWS = "factor-rows"
    ROWS_BY = "factor-rows-by"
    ROWS_LEFT_OUT = "factor-rows-left-out"
    OVERLAP = "factor-overlap"
    RECORD = "record"
    COMPUTE_FACTORS = "compute-factors"
    TOKENS_BASE = "tokens-base"
    TOKENS_READ = "tokens-read"
    PRESSES = "presses"
    LABEL_NAME = "label-name"
    LABEL_SPURIOUS = "label-spurious"
    LABEL_POLARITY = "label-polarity"
    LABEL_CONFIDENCE = "label-confidence"
    LABEL_NOTE = "label-note"
    LABEL_SUGGESTED = "label-suggested"
    LABEL_SAVE = "label-save"
    LABEL_WITHDRAW = "label-withdraw"
    # labels
    LABELS_RUN = "labels-run"
    LABELS_REVEAL = "labels-reveal"
    LABELS_CSV = "labels-csv"
    LABELS_JSON = "labels-json"
    LABELS_UPLOAD = "labels-upload"
    LABELS_IMPORT = "labels-import"
    # retrain
    RETRAIN_FACTORS = "retrain-factors"
    RETRAIN_GROUP = "retrain-group"
    RETRAIN_METHOD = "retrain-method"
    RETRAIN_INOCULATION = "retrain-inoculation"
    RETRAIN_OUT = "retrain-out"
    RETRAIN_ANCHOR = "retrain-anchor"
    RETRAIN_STRENGTH = "retrain-strength"
    RETRAIN_TOLERANCE = "retrain-tolerance"
    RETRAIN_SEED = "retrain-seed"
    RETRAIN_REVIEW = "retrain-review"
    RETRAIN_START = "retrain-start"
    RETRAIN_BACK = "retrain-back"
    MISSING = "missing"
    MISSING_LENGTH = "missing-length-unit"
    MISSING_OTHERS = "missing-others"
    MISSING_KEEP = "missing-keep"
    JOB_PANEL = "job-panel"
    JOB_CANCEL = "job-cancel"
    JOB_REQUEUE = "job-requeue"
    JOB_COMPARE = "job-compare"
    JOB_LOSS = "job-loss"
    JOB_DRIFT = "job-drift"
    JOB_EFFECT = "job-effect"
    JOBS = "jobs"
    # home
    LEARNED = "home-learned"
    BEFORE_AFTER = "home-before-after"
    NEXT_STEP = "home-next-step"
    NEXT_JOB = "home-next-job"
    GLOSSARY = "home-glossary"
    # compare
    VERDICT = "verdict"
    FAMILY = "compare-family"
    SPLIT = "compare-split"
    EVALUATE = "compare-evaluate"
    EVALUATE_SET = "compare-evaluate-set"
    ARMS_TABLE = "arms-table"
    INSTRUMENTS = "instruments-table"
    FRONTIER = "compare-frontier"
    FRONTIER_DRIFT = "compare-frontier-drift"
    METRIC = "compare-metric"
    INTERVALS = "compare-intervals"
    FLIPS = "compare-flips"
    FLIPS_ARM = "compare-flips-arm"
    FLIPS_ROLE = "compare-flips-role"
    FLIPS_AGAINST = "compare-flips-against"
    ROLE = "compare-role"
    GROUP = "compare-group"
    ARMS = "compare-arms"
    PROMPT = "compare-prompt"
    COMPARE_CSV = "compare-csv"
    COMPARE_REPORT = "compare-report"
    TESTS_TABLE = "compare-tests"

    @staticmethod
    def label(position: int) -> str:
        """Key of the button for the label name at `position`, counted from 1."""
        return f"label-{position}"

    @staticmethod
    def missing(setting: str) -> str:
        """Key of the field for a setting that a run made elsewhere lacks."""
        return f"missing-{setting}"

    @staticmethod
    def measure(kind: str) -> str:
        """Key of the button that starts the measurement of one kind of evidence."""
        return f"measure-{kind}"

    @staticmethod
    def job(job_id: int) -> str:
        """Key of the button that opens a job in the list of recent ones."""
        return f"job-{job_id}"

    @staticmethod
    def active(job_id: int) -> str:
        """Key of the sidebar's link to an active job."""
        return f"active-job-{job_id}"


MAX_LENGTH = 300
_WRONG: ContextVar[list[tuple[Parameter, str, str]]] = ContextVar("wrong links")


def parse_choice(value: str | None, options: Sequence[str]) -> str | None:
    """`value` if it is one of `options`, else None."""
    return value if value is not None and value in options else None


def parse_number(value: str | None) -> int | None:
    """A whole number from 0 to 10⁹ in plain digits, else None."""
    if value is None or not value.isascii() or not value.isdecimal() or len(value) > 9:
        return None
    return int(value)


def read_parameter(parameter: Parameter) -> str | None:
    """The raw value of a URL parameter; None if it is absent or too long."""
    value = st.query_params.get(parameter)
    return value if value is not None and len(value) <= MAX_LENGTH else None


def resolve_choice(
    parameter: Parameter, options: Sequence[str], *, default: str | None = None
) -> str | None:
    """The selected option: from the URL, else this session, else `default`, else the first one.

    The result is written to the URL.  None if there are no options.
    """
    if not options:
        return None
    fallback = default if default is not None and default in options else options[0]
    asked = st.query_params.get(parameter)
    from_link = asked != st.session_state.get(_memory(parameter))
    value: str = (
        parse_choice(read_parameter(parameter), options)
        or parse_choice(st.session_state.get(_memory(parameter)), options)
        or fallback
    )
    remember(parameter, value)
    if asked and asked not in options and from_link:
        st.session_state[_wrong(parameter)] = (asked[:MAX_LENGTH], value)
    wrong, instead = st.session_state.get(_wrong(parameter), ("", ""))
    if wrong and instead == value and (found := _WRONG.get(None)) is not None:
        found.append((parameter, wrong, value))
    return value


def collect_wrong_links() -> list[tuple[Parameter, str, str]]:
    """A list to which this run adds what a link asked for in vain: parameter, wanted, shown."""
    found: list[tuple[Parameter, str, str]] = []
    _WRONG.set(found)
    return found


def read_number(parameter: Parameter) -> int | None:
    """The number in a URL parameter, such as a job's, or None."""
    return parse_number(read_parameter(parameter))


def remember(parameter: Parameter, value: str | None) -> None:
    """Write a selection to the URL and to this session; None removes it from both."""
    if value is None:
        st.query_params.pop(parameter, None)
        st.session_state.pop(_memory(parameter), None)
        return
    if st.session_state.get(_wrong(parameter), ("", value))[1] != value:
        del st.session_state[_wrong(parameter)]
    if st.query_params.get(parameter) != value:
        st.query_params[parameter] = value
    st.session_state[_memory(parameter)] = value


def pick(
    label: str,
    parameter: Parameter,
    options: Sequence[str],
    *,
    key: str,
    default: str | None = None,
    format_func: Callable[[str], str] = str,
    hidden_label: bool = False,
    widget: Literal["list", "buttons"] = "list",
    choose: Callable[[str], None] | None = None,
) -> str | None:
    """Draw a select box or a row of buttons bound to a URL parameter; None if no options.

    `choose` takes what was picked; without it, that is remembered.
    """
    value = resolve_choice(parameter, options, default=default)
    if value is None:
        return None
    shown = follow(key, value)

    def changed() -> None:
        found = st.session_state[shown] or value
        if found == value:
            return
        hold(key, found)
        if choose is None:
            remember(parameter, found)
        else:
            choose(found)

    visibility: Literal["collapsed", "visible"] = "collapsed" if hidden_label else "visible"
    if widget == "buttons":
        st.segmented_control(
            label,
            options,
            key=shown,
            default=value,
            format_func=lambda option: literal(format_func(option)),
            required=True,
            on_change=changed,
            label_visibility=visibility,
        )
    else:
        st.selectbox(
            label,
            options,
            index=list(options).index(value),
            key=shown,
            format_func=format_func,
            on_change=changed,
            label_visibility=visibility,
        )
    return value


def follow(key: str, value: str) -> str:
    """The key of a widget made with `value`: a new one if something else has changed the value.

    The browser sends what its widgets hold along with whatever is pressed. From a widget that has
    yet to be drawn with a new value, that is the old one, and Streamlit would take it for a choice.
    For the same reason the value is given to the widget, not to the session.
    """
    turn, held = st.session_state.get(_turn(key), (0, value))
    if held != value:
        turn += 1
    st.session_state[_turn(key)] = (turn, value)
    return f"{key}-{turn}" if turn else key


def hold(key: str, value: str) -> None:
    """Say that a widget of `follow` was set to a value by hand, and need not be made anew."""
    turn, _ = st.session_state.get(_turn(key), (0, value))
    st.session_state[_turn(key)] = (turn, value)


def _turn(key: str) -> str:
    return f"turn:{key}"


def _wrong(parameter: Parameter) -> str:
    return f"wrong:{parameter}"


def _memory(parameter: Parameter) -> str:
    return f"selected:{parameter}"
