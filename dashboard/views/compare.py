"""Compare: the arms of one family, their trade-off, where they differ, what they answer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import pandas as pd
import streamlit as st

from analysis import evidence_tables
from analysis.records import ROLES, RunManifest, Split
from analysis.workspace import Workspace
from dashboard import caches, commands, notices, runs
from dashboard.figures import comparison as figures
from dashboard.frame import no_runs
from dashboard.markup import escape, html_table, interval, literal
from dashboard.selection import FAMILY, GROUP, PROMPT, ROLE, RUN, SPLIT, Key, from_url, picker
from dashboard.theme import method_style

BASE = "base"
ANY = "any"
ARM_METRICS = ("unrelated", "removal", "task", "facts", "format", "coherence", "related", "control")
SPLITS = {"confirmation": "Confirmation", "exploration": "Exploration"}
FLIP = 0.5


def page() -> None:
    """Draw the page."""
    workspace = caches.workspace()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    with left:
        st.title("Compare", anchor=False)
    listing = workspace.runs()
    notices.broken_records([*listing.broken, *workspace.evaluations().broken])
    families = runs.families(listing.records)
    if not families:
        no_runs(workspace)
        return
    with right:
        family = _family(families)
    split = _split()
    arms = _evaluated(workspace, families[family])
    if not arms:
        return
    with notices.guarded("The comparison"):
        _comparison(workspace, family, arms, split)


def _family(families: dict[str, list[RunManifest]]) -> str:
    roots = {run.id: root for root, group in families.items() for run in group}
    wanted = from_url(RUN) or st.session_state.get("selected:run", "")
    titles = {root: group[0].title if group[0].id == root else root
              for root, group in families.items()}  # fmt: skip
    return str(
        picker(
            "Family",
            FAMILY,
            list(families),
            key=Key.FAMILY,
            default=roots.get(str(wanted)),
            shown=lambda root: titles[root],
            hidden_label=True,
        )
    )


def _split() -> Split:
    split = picker(
        "Prompts",
        SPLIT,
        list(SPLITS),
        key=Key.SPLIT,
        shown=lambda name: SPLITS[name],
        hidden_label=True,
        widget="buttons",
    )
    if split == "exploration":
        st.warning(
            "Exploration prompts: these may have been looked at and tuned on. Report the "
            "confirmation prompts."
        )
    return cast(Split, split)


def _evaluated(workspace: Workspace, family: Sequence[RunManifest]) -> list[RunManifest]:
    """Runs with an evaluation that can be read; what is missing is said, with the command."""
    found, missing = [], []
    for run in family:
        folder = workspace.root / "evaluations" / run.id
        if not folder.is_dir():
            missing.append(run.id)
            continue
        with notices.guarded(f"The evaluation of {run.id}"):
            caches.evaluation(workspace, run.id)
            found.append(run)
    if missing:
        lines = [
            commands.shown(commands.evaluate(name, workspace=workspace.root)) for name in missing
        ]
        notices.empty(
            f"Not evaluated yet: {', '.join(missing)}",
            "An arm can be compared once it has answered the family's prompts.",
            command="\n".join(lines),
        )
    return found


def _comparison(workspace: Workspace, root: str, arms: list[RunManifest], split: Split) -> None:
    ids = [run.id for run in arms]
    labels = {"": "Base model", **runs.arm_labels(arms)}
    table = caches.comparison(workspace, ids, split=split).copy()
    table["label"] = [labels.get(run, run) for run in table["run"]]
    with st.container(key=Key.ARMS_TABLE):
        st.html(_arms_table(table, arms, split))
    st.download_button(
        "Numbers as CSV",
        table.to_csv(index=False),
        f"{root}-{split}.csv",
        "text/csv",
        key=Key.COMPARE_CSV,
        icon=":material/download:",
        on_click="ignore",
    )
    left, right = st.columns([3, 2])
    with left, st.container(border=True, height="stretch"):
        st.plotly_chart(figures.frontier(table), key=Key.FRONTIER, config={"displayModeBar": False})
        notices.reading(
            "Better is to the right and down: the task is kept and the unrelated behaviour is "
            "not there. Bars are 95 % intervals. The base model marks where the rate began."
        )
    with right, st.container(border=True, height="stretch"):
        _intervals(table)
    answers = caches.answers(workspace, ids, split=split)
    names = {run or BASE: label for run, label in labels.items()}
    _flips(answers, names, root)
    _side_by_side(answers, names)


def _arms_table(table: pd.DataFrame, arms: Sequence[RunManifest], split: Split) -> str:
    metrics = [metric for metric in ARM_METRICS if (table["metric"] == metric).any()]
    cells = {(row["run"], row["metric"]): row for row in table.to_dict("records")}
    factors = {run.id: ", ".join(name.rpartition("/")[2] for name in run.factors) for run in arms}
    rows = []
    for run, group in table.groupby("run", sort=False):
        colour, _ = method_style(str(group["method"].iloc[0]))
        held = f" protecting {factors[str(run)]}" if factors.get(str(run)) else ""
        name = (
            f'<span class="swatch" style="background:{colour}"></span>'
            f"{escape(group['label'].iloc[0])}"
            f'<span class="sub">{escape(str(run) + held)}</span>'
        )
        rows.append([name, *(_cell(cells.get((run, metric))) for metric in metrics)])
    header = ["Arm", *(figures.metric_name(metric).capitalize() for metric in metrics)]
    caption = (
        f"Means over the {split} prompts with 95 % intervals. Removal is 1 − drift of the arm / "
        "drift of the naive run, drift being the unrelated rate minus the base model's."
    )
    return html_table(header, rows, caption=caption)


def _cell(row: dict[Hashable, Any] | None) -> str:
    if row is None:
        return '<span class="absent">–</span>'
    return interval(row["value"], row["low"], row["high"], row["n"])


def _intervals(table: pd.DataFrame) -> None:
    metrics = [metric for metric in ARM_METRICS if (table["metric"] == metric).any()]
    metric = st.selectbox(
        "Metric",
        metrics,
        key=Key.METRIC,
        format_func=figures.metric_name,
        persist_state="session",
    )
    st.plotly_chart(
        figures.intervals(table, metric=str(metric)),
        key=Key.INTERVALS,
        config={"displayModeBar": False},
    )
    notices.reading(
        "Points are means, bars 95 % intervals; arms whose bars overlap may not differ."
    )


def _flips(answers: pd.DataFrame, names: dict[str, str], root: str) -> None:
    st.subheader("Flips", anchor=False)
    arms = list(names)
    against_options = [name for name in (root, BASE) if name in arms]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        against = st.segmented_control(
            "Against",
            against_options,
            key=Key.FLIPS_AGAINST,
            default=against_options[0],
            required=True,
            format_func=lambda name: names[name],
        )
        others = [name for name in arms if name != against]
        arm = st.selectbox(
            "Arm",
            others,
            key=Key.FLIPS_ARM,
            index=min(1, len(others) - 1) if against == root else 0,
            format_func=lambda name: names[name],
        )
    if arm is None or against is None:
        st.caption("There is only one arm, so nothing can differ.")
        return
    roles = [ANY, *(role for role in ROLES if (answers["role"] == role).any())]
    role = st.pills("Role", roles, key=Key.FLIPS_ROLE, default=ANY, required=True,
                    label_visibility="collapsed")  # fmt: skip
    answers = answers if role == ANY else answers[answers["role"] == role]
    flips = evidence_tables.flips(answers, arm=arm, against=against, threshold=FLIP)
    st.markdown(
        literal(
            f"{len(flips)} of {len(answers)} prompts are on the other side of {FLIP:g} in "
            f"{names[arm]} than in {names[against]}."
        )
    )
    if not flips.empty:
        score = st.column_config.NumberColumn(format="%.3f")
        text = st.column_config.TextColumn(width=220)
        columns = {
            f"{what}:{name}": f"{names[name]}, {what}"
            for name in (against, arm)
            for what in ("score", "answer")
        }
        st.dataframe(
            flips.rename(columns=columns),
            hide_index=True,
            height=min(260, 38 + 35 * len(flips)),
            key=Key.FLIPS,
            column_order=["prompt", *columns.values(), "role", "group", "prompt_id"],
            column_config={
                title: score if name.startswith("score:") else text
                for name, title in columns.items()
            }
            | {"prompt": st.column_config.TextColumn(width=280)},
            alt="Prompts that differ",
        )
        notices.reading("Scores are 0 to 1; for unrelated prompts 1 is the unwanted behaviour.")


def _side_by_side(answers: pd.DataFrame, names: dict[str, str]) -> None:
    st.subheader("Answers side by side", anchor=False)
    left, middle, right = st.columns([1, 1, 3])
    roles = [ANY, *(role for role in ROLES if (answers["role"] == role).any())]
    with left:
        role = picker("Role", ROLE, roles, key=Key.ROLE)
    chosen = answers if role == ANY else answers[answers["role"] == role]
    with middle:
        group = picker("Group", GROUP, [ANY, *sorted(chosen["group"].unique())], key=Key.GROUP)
    if group != ANY:
        chosen = chosen[chosen["group"] == group]
    if chosen.empty:
        st.caption("No prompt is of this role and group.")
        return
    texts = dict(zip(chosen["prompt_id"], chosen["prompt"], strict=True))
    with right:
        prompt = picker(
            "Prompt",
            PROMPT,
            list(texts),
            key=Key.PROMPT,
            shown=lambda name: f"{texts[name]}  ({name})",
        )
    arms = st.pills(
        "Arms",
        list(names),
        selection_mode="multi",
        default=list(names),
        key=Key.ARMS,
        format_func=lambda name: names[name],
        label_visibility="collapsed",
    )
    row = chosen[chosen["prompt_id"] == prompt].iloc[0]
    st.html(_answers_table(row, {name: names[name] for name in arms}))


def _answers_table(row: pd.Series, names: dict[str, str]) -> str:
    rows = [
        [
            escape(label),
            f"{row[f'score:{name}']:.3f}",
            escape(row[f"answer:{name}"]),
        ]
        for name, label in names.items()
        if f"answer:{name}" in row
    ]
    expected = f" Expected: {row['expected']}." if row["expected"] else ""
    caption = f"{row['prompt']}{expected} Role {row['role']}, group {row['group']}, {row['split']}."
    return html_table(["Arm", "Score (0–1)", "Answer"], rows, caption=caption)


if __name__ == "__main__":
    page()
