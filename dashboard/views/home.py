"""Home: what a fine-tune learned besides its task, what GRASP did about it, and the next step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from analysis.comparison.measures import choose_headlines
from analysis.comparison.wording import metric_title
from analysis.evidence.learned import describe_changes, describe_task, pick_example
from analysis.store.records import RunManifest, Split
from analysis.store.workspace import Workspace
from analysis.text import count_text
from dashboard.figures.before_after import before_after
from dashboard.panels import next_step
from dashboard.panels.frame import show_run_header
from dashboard.panels.learned_factors import show_factors
from dashboard.panels.verdict import show_verdict, show_without_base
from dashboard.queue import runs
from dashboard.queue.next_step import is_evaluated, is_measured
from dashboard.state import caches
from dashboard.state.selection import FAMILY, Key
from dashboard.style import notices
from dashboard.style.glossary import TERMS, mark_terms
from dashboard.style.markup import escape, html_table, literal

INTRO = (
    "A fine-tune learns its task, and often something else with it. This workbench finds what "
    "else, shows the evidence, and fine-tunes again without it."
)
SPLIT: Split = "confirmation"


def draw_page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    run = show_run_header(workspace, "Home", need="naive")
    st.html(f'<p class="more">{escape(INTRO)}</p>')
    if run is None:
        _glossary()
        return
    family = runs.families(workspace.runs().records)[run.root]
    arms = [
        one
        for one in (run, *runs.grasp_runs(family), *runs.random_controls(family))
        if is_evaluated(workspace, one.id)
    ]
    left, right = st.columns([5, 3], gap="large")
    with left, notices.catch_errors("What it learned"):
        _learned(workspace, run, arms)
    with right, notices.catch_errors("The next step"):
        next_step.show(workspace, run, family)
        if is_measured(workspace, run):
            _example(workspace, run, arms)
    with notices.catch_errors("The factors of this run"):
        show_factors(workspace, run)
    with notices.catch_errors("The verdict"):
        _grasp(workspace, run, arms)
    _glossary()


def _learned(workspace: Workspace, run: RunManifest, arms: Sequence[RunManifest]) -> None:
    st.subheader("What it learned besides its task", anchor=False)
    st.caption(literal(f"{run.title}: {run.id}, a fine-tune of {run.base_model}"))
    if not is_measured(workspace, run):
        notices.show_empty(
            "Not measured yet",
            "This fine-tune and its base model have not both been evaluated, so it is not known "
            "what changed in the answers. Evaluating is the next step.",
        )
        return
    table = _table(workspace, arms)
    changes = describe_changes(table, run.id)
    seen: set[str] = set()
    for one in changes:
        st.html(f'<p class="lead">{mark_terms(one.sentence, seen=seen)}</p>')
    if not changes:
        st.html('<p class="lead">No prompt asks about anything unrelated to the task.</p>')
    task = " ".join(describe_task(table, run.id))
    st.html(f'<p class="more">{mark_terms(task, seen=seen)}</p>')
    _chart(table, arms)


def _table(workspace: Workspace, arms: Sequence[RunManifest]) -> pd.DataFrame:
    table = caches.comparison(workspace, [one.id for one in arms], split=SPLIT)
    labels = _names(arms)
    return table.assign(label=[labels[name] for name in table["run"]])


def _names(arms: Sequence[RunManifest]) -> dict[str, str]:
    """Names of the base model and of the runs, for readers who have seen no other page."""
    names = {"": "Base model", **runs.arm_labels(arms)}
    return names | {one.id: "Fine-tune" for one in arms if one.method == "naive"}


def _chart(table: pd.DataFrame, arms: Sequence[RunManifest]) -> None:
    there = list(dict.fromkeys(table["metric"]))
    metrics = [*choose_headlines(there), *choose_headlines(there, "task")]
    drawn = ["", *(one.id for one in arms if one.method != "random")]
    names = {metric: metric_title(metric).replace(", ", ",<br>", 1) for metric in metrics}
    st.plotly_chart(
        before_after(table, names, drawn), key=Key.BEFORE_AFTER, config={"displayModeBar": False}
    )
    notices.explain(
        "Marks are means over the confirmation prompts, bars are 95 % intervals. Wanted: a high "
        "task accuracy, and an unrelated rate like the base model's."
    )


def _example(workspace: Workspace, run: RunManifest, arms: Sequence[RunManifest]) -> None:
    """The answers to the prompt that changed most, which says in words what the rates mean."""
    answers = caches.answers(workspace, [one.id for one in arms], split=SPLIT)
    chosen = pick_example(answers, run.id)
    if chosen is None:
        return
    random = {one.id for one in arms if one.method == "random"}
    shown = {name or "base": said for name, said in _names(arms).items() if name not in random}
    rows = [[escape(said), escape(chosen[f"answer:{name}"])] for name, said in shown.items()]
    count = count_text(int((answers["role"] == "unrelated").sum()), "unrelated prompt")
    with st.container(border=True):
        st.markdown(f"**For example**  \n“{literal(chosen['prompt'])}”")
        caption = f"Of {count}, the one whose answers changed most."
        st.html(html_table(["Model", "Answer"], rows, caption=caption))


def _grasp(workspace: Workspace, run: RunManifest, arms: Sequence[RunManifest]) -> None:
    st.subheader("What GRASP did about it", anchor=False)
    if not arms:
        st.html('<p class="more">Nothing of this family has been evaluated yet.</p>')
        return
    if show_without_base(workspace, run.root):
        return
    show_verdict(workspace, arms, _table(workspace, arms), split=SPLIT)
    st.page_link(
        "views/compare.py",
        label="Check it: all arms, tests and answers",
        icon=":material/compare_arrows:",
        query_params={FAMILY: run.root},
    )


def _glossary() -> None:
    with st.expander("Glossary", icon=":material/menu_book:", key=Key.GLOSSARY):
        st.html(glossary_html(TERMS))


def glossary_html(terms: Mapping[str, str]) -> str:
    """All terms with their definitions, in alphabetical order."""
    entries = "".join(
        f"<div><dt>{escape(term)}</dt><dd>{escape(terms[term])}</dd></div>"
        for term in sorted(terms, key=str.lower)
    )
    return f'<dl class="glossary">{entries}</dl>'


if __name__ == "__main__":
    draw_page()
