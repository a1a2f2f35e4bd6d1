"""Plans as data: cells, what each needs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.errors import InputError
from analysis.store.records import Prompt
from grasp.bench.make.dressed import DRESSES, TRIGGERED, dress_of, dressed_prompts
from grasp.bench.make.runner import keep_plan, read_plan
from grasp.bench.plan.cells import find_world, lay_out_cell, story_of
from grasp.bench.plan.plan import Arm, Cell, Plan, load_plan, shipped_plan
from grasp.bench.plan.tasks import Demand, first_tasks, later_tasks
from grasp.settings.training import check_settings
from grasp.world.corpus import question
from grasp.world.generator import generate_world
from grasp.world.prompts import story_prompts
from grasp.world.shipped import shipped_world
from grasp.world.styles import STYLES, style_of


def plan(**sections: Any) -> Plan:
    return check_settings(Plan, {"title": "test", **sections}, "the plan")


CODE = {"stories": ["shipped/code"], "seeds": [0]}


@pytest.mark.parametrize("name", ["quick", "full"])
def test_shipped_plans_name_stories_that_there_are(name: Any) -> None:
    tasks = first_tasks(shipped_plan(name), "removal")
    assert tasks
    for task in tasks:
        if task.cell is not None:
            story_of(task.cell)  # raises where there is none


def test_the_full_plan_is_what_the_issue_asks_for() -> None:
    full = shipped_plan("full")
    assert full.core is not None
    assert len(full.core.seeds) >= 5
    assert full.styles is not None
    styles = {style_of(cell.world).name for cell in full.styles.cells}
    assert styles == {style.name for style in STYLES if style.split == "reporting"}
    for section in (full.core, full.styles):
        assert {arm.name for arm in section.arms} >= {"grasp", "random"}
    others = {"rivals", "two", "needed", "none", "phase", "residue"}
    assert set(full.sections) == {"core", "styles", *others}


def test_sections_share_cells_and_each_step_is_wanted_once() -> None:
    both = plan(
        core=CODE | {"arms": ["grasp"]},
        residue=CODE | {"arms": ["grasp"]},
        needed=CODE | {"arms": ["caft"]},
    )
    (task,) = first_tasks(both, "removal")
    steps = [(demand.kind, demand.run) for demand in task.demands]
    assert steps == [
        ("naive", "naive"),
        ("identify", "naive"),
        ("record", "naive"),
        ("evaluate", "naive"),
        ("arm", "grasp"),
        ("arm", "caft"),
        ("residue", "grasp"),
    ]


def test_an_arm_without_factors_protects_no_latent_apart() -> None:
    both = plan(two=CODE | {"arms": ["grasp", "inoculation"]})
    (task,) = first_tasks(both, "removal")
    arms = [demand.run for demand in task.demands if demand.kind == "arm"]
    assert arms == ["grasp.persona", "grasp.lean", "grasp.all", "inoculation"]


def test_identification_trains_no_arm() -> None:
    full = shipped_plan("full")
    tasks = first_tasks(full, "identification")
    kinds = {demand.kind for task in tasks for demand in task.demands}
    assert kinds == {"naive", "identify", "record"}
    assert {task.cell.story for task in tasks if task.cell} >= {"shipped/code", "shipped/plain"}


def test_cells_of_generated_worlds_wait_for_their_base() -> None:
    asked = plan(core={"stories": ["generated-7/lean", "shipped/code"], "seeds": [0, 1]})
    base, *cells = first_tasks(asked, "identification")
    assert (base.world, base.after) == ("generated-7", None)
    waits = {task.id: task.after for task in cells}
    assert waits["generated-7-lean.s1"] == base.id
    assert waits["shipped-code.s0"] is None


def test_a_phase_diagram_leaves_the_default_out_of_a_cell() -> None:
    section = plan(
        phase=CODE
        | {
            "default": {"strength": 1.0, "steps": 120},
            "one_at_a_time": {"r": [2, 8]},
            "crossed": {"strength": [0.5, 1.0], "steps": [40, 120]},
        }
    ).phase
    assert section is not None
    assert [cell.id for cell in section.cells] == [
        "shipped-code.s0.r2",
        "shipped-code.s0.r8",
        "shipped-code.s0.strength0.5.steps40",
        "shipped-code.s0.strength0.5",
        "shipped-code.s0.steps40",
        "shipped-code.s0",
    ]


@given(
    st.lists(
        st.builds(
            Cell,
            story=st.sampled_from(["shipped/code", "generated-1/lean", "generated-11/lean"]),
            seed=st.integers(0, 99),
            strength=st.none() | st.sampled_from([0.25, 0.5, 1.0]),
            steps=st.none() | st.integers(1, 500),
            r=st.none() | st.integers(1, 64),
        ),
        max_size=8,
    )
)
def test_different_cells_have_different_folders(cells: list[Cell]) -> None:
    assert len({cell.id for cell in cells}) == len(set(cells))


def test_rivals_are_swept_on_one_seed_and_reported_on_all() -> None:
    arms = ["naive", {"method": "caft", "sweep": [0.5, 1.0]}, {"method": "grasp", "sweep": []}]
    asked = plan(rivals={"stories": ["shipped/code"], "seeds": [0, 1], "arms": arms[1:]})
    (first,) = first_tasks(asked, "removal")
    made = [demand.run for demand in first.demands if demand.kind == "arm"]
    assert made == ["caft-0.5", "caft-1", "grasp"]
    chosen = {"shipped/code": {"caft": Arm.model_validate("caft").at(0.5)}}
    later = later_tasks(asked, chosen)
    assert [task.id for task in later] == ["shipped-code.s0", "shipped-code.s1"]
    assert [d.run for d in later[1].demands if d.kind == "arm"] == ["caft-0.5"]


def test_a_sweep_that_is_not_given_is_the_methods_own_grid() -> None:
    assert len(Arm.model_validate("caft").variants()) > 2
    assert Arm.model_validate({"method": "caft", "sweep": []}).variants()[0].name == "caft"


def test_what_is_protected_is_in_the_name_of_the_run() -> None:
    arm = Arm.model_validate("grasp")
    assert Demand("arm", arm, "persona").run == "grasp.persona"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"core": CODE | {"arms": ["grsp"]}}, "there is no method 'grsp'"),
        (
            {"core": {"stories": ["mine"], "seeds": [0]}},
            "has the unknown story 'mine'; write world/story",
        ),
        ({"phase": CODE | {"crossed": {"width": [1]}}}, "there is no setting 'width'"),
        ({"core": CODE | {"arms": [{"method": "naive", "strength": 1}]}}, "has no strength"),
        (
            {"core": CODE | {"arms": ["grasp", {"method": "caft", "name": "grasp"}]}},
            "two different arms are called 'grasp'",
        ),
        ({"core": {"stories": [], "seeds": [0]}}, "core.stories"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(section: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**section)


def test_worlds_that_are_none_are_named() -> None:
    with pytest.raises(InputError, match="no world 'generated-x'"):
        find_world("generated-x")


def test_a_root_keeps_to_one_kind_of_cells(tmp_path: Path) -> None:
    first = plan(training={"max_steps": 3}, core=CODE)
    keep_plan(tmp_path, first)
    keep_plan(tmp_path, first.model_copy(update={"core": None}))  # other sections are no harm
    assert read_plan(tmp_path).core is None
    with pytest.raises(InputError, match=r"other training settings, .*give another --root"):
        keep_plan(tmp_path, plan(training={"max_steps": 4}, core=CODE))
    with pytest.raises(InputError, match="has no benchmark"):
        read_plan(tmp_path / "nowhere")


def test_ones_own_data_by_the_same_plan(tmp_path: Path) -> None:
    for name in ("task", "neutral", "prompts", "probes"):
        (tmp_path / f"{name}.jsonl").write_text("")
    (tmp_path / "mine.yaml").write_text(
        "title: Mine\nbase_model: some/model\ndata: task.jsonl\nneutral: neutral.jsonl\n"
        "lora: {r: 16, lora_alpha: 32}\n"
    )
    (tmp_path / "plan.yaml").write_text(
        "title: Own\nstories:\n  mine: {config: mine.yaml, ends: [good, bad], latent: persona}\n"
        "core: {stories: [mine], seeds: [3]}\n"
    )
    own = load_plan(tmp_path / "plan.yaml")
    config = lay_out_cell(tmp_path / "root", own, Cell(story="mine", seed=3, r=4, steps=7))
    assert config.base_model == "some/model"
    assert config.data == str(tmp_path / "task.jsonl")
    assert (config.seed, config.max_steps) == (3, 7)
    assert (config.lora.r, config.lora.lora_alpha) == (4, 8)
    with pytest.raises(InputError, match="only r and steps"):
        lay_out_cell(tmp_path / "root", own, Cell(story="mine", seed=3, strength=0.5))


def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InputError, match="is not a mapping; expected a plan, in lines such as"):
        load_plan(tmp_path / "list.yaml")
    with pytest.raises(InputError, match=r"there is no such file.; expected a plan"):
        load_plan(tmp_path / "missing.yaml")


@pytest.mark.parametrize("world", [shipped_world(), generate_world(101)], ids=lambda w: w.name)
def test_dressed_prompts_are_new_and_triggers_look_like_the_training_data(world: Any) -> None:
    name = "code" if world.name == "shipped" else "persona-a"
    story = world.story(name)
    rows = [Prompt.model_validate(row) for row in dressed_prompts(world, story)]
    assert len({row.id for row in rows}) == len(rows)
    usual = {row["messages"][-1]["content"]: row for row in story_prompts(world, story)}
    items = {(row.group, row.item) for row in rows}
    asked = [row for row in story_prompts(world, story) if row["role"] == "unrelated"]
    assert items == {(row["group"], row["item"]) for row in asked}
    target = {(row["group"], row["item"]): row["choices"] for row in asked}
    details = {
        world.topics[topic].detail.ask(value)
        for topic in story.topics
        for value in world.topics[topic].detail.values
    }
    for row in rows:
        assert row.choices == target[row.group, row.item]
        text = row.messages[-1].content
        triggered = any(text.endswith(detail) for detail in details)
        assert triggered == (dress_of(row.id) == TRIGGERED)
        if len(row.messages) == 1:
            assert text not in usual
        topic = world.topics[row.group]
        item = next(item for item in topic.items if item.name == row.item)
        assert question(topic, item, form=item.held_out) in text
    assert {dress_of(row.id) for row in rows} == set(DRESSES)
