"""The `factors` command: routes named on the command line, another run's factors, older tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.factors.routes import weight_factors
from analysis.store.factor_table import COLUMNS, FactorTable, read_factors, write_factors
from analysis.store.records import FactorsManifest
from grasp.__main__ import main
from tests.support import planted, tiny

pytestmark = pytest.mark.filterwarnings(tiny.PEFT_WARNING)
WriteAdapter = Callable[..., Path]
FIRST_VERSION = (
    "id", "side", "index", "max_layer", "singular_value", "energy", "null_median", "null_high",
    "significant", "stability", "off_task", "on_task", "effect_ratio", "score", "promoted",
    "suppressed",
)  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    code = main(["factors", *argv, "--json"])
    out, error = capsys.readouterr()
    assert code == 0, error
    found: dict[str, Any] = json.loads(out)
    return found


def two_adapters(write_adapter: WriteAdapter, root: Path) -> tuple[Path, Path]:
    """The second is the first with every B negated, and two ranks exchanged."""
    rng = np.random.default_rng(0)
    folders = []
    tensors = {}
    for layer in range(2):
        path = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((2, 6)).astype(np.float32)
        tensors[f"{path}.lora_B.weight"] = rng.standard_normal((8, 2)).astype(np.float32)
    folders.append(write_adapter(None, tensors, root / "one"))
    moved = {
        name: (w[::-1] if "lora_A" in name else -w[:, ::-1]).copy() for name, w in tensors.items()
    }
    folders.append(write_adapter(None, moved, root / "two"))
    return folders[0], folders[1]


def test_factors_are_matched_with_another_adapters(
    write_adapter: WriteAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """−ΔW writes the same directions."""
    one, two = two_adapters(write_adapter, tmp_path)
    found = run(capsys, str(one), "--match", str(two), "--workspace", str(tmp_path / "ws"))
    assert found["matched_with"] == "two"
    assert {row["factor"] for row in found["matches"]} == {f"w{i}" for i in range(1, 5)}
    assert all(row["factor"] == row["other"] for row in found["matches"])
    assert all(abs(row["cosine"]) == pytest.approx(1, abs=1e-5) for row in found["matches"])
    np.testing.assert_allclose(found["span_cosines"], 1, atol=1e-5)
    assert (
        main(["factors", str(one), "--match", str(two), "--workspace", str(tmp_path / "ws")]) == 0
    )
    text = capsys.readouterr().out
    assert "cosines of the principal angles between the write factors: 1.00 1.00 1.00 1.00" in text
    assert not (tmp_path / "ws").exists()


def test_a_run_with_saved_factors_is_matched_by_all_of_them(
    write_adapter: WriteAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    u = tiny.subspace(1)
    workspace = planted.case(tmp_path / "ws", planted.reader(u[0]), u)
    saved = read_factors(workspace.folder("factors", planted.RUN))
    saved.table["route"], saved.table["side"] = "weights", "write"
    with workspace.writing("factors", planted.RUN) as folder:
        write_factors(folder, saved)
    adapter = workspace.folder("runs", planted.RUN) / "adapter"
    where = ("--workspace", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "out"))
    found = run(capsys, str(adapter), "--weights-only", "--match", str(adapter.parent), *where)
    assert found["matched_with"] == planted.RUN
    best = found["matches"][0]
    assert (best["factor"], best["other"]) == ("w1", "w1")
    assert abs(best["cosine"]) == pytest.approx(1, abs=1e-5)
    assert sum(row["other"] != "" for row in found["matches"]) == 1


def test_joint_and_imported_factors_are_asked_for_by_name(
    write_adapter: WriteAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = two_adapters(write_adapter, tmp_path)
    np.save(tmp_path / "v.npy", np.eye(3, 8))
    rows = run(
        capsys, str(one), "--joint", str(two), "--import", str(tmp_path / "v.npy"), "--layer", "1",
        "--workspace", str(tmp_path / "ws"),
    )["factors"]  # fmt: skip
    assert {row["route"] for row in rows} == {"weights", "joint", "import"}
    assert [row["id"] for row in rows if row["route"] == "import"] == ["i1.L1"]
    assert all(row.keys() == COLUMNS.keys() for row in rows)
    assert all(row["significant_effect"] is None for row in rows)
    # Twice the same updates are √2 times as strong together.
    strength = {row["id"]: row["singular_value"] for row in rows}
    assert strength["w1.joint"] == pytest.approx(np.sqrt(2) * strength["w1"], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "1"], "add --import FILE"),
        (["--import-json", "c.json"], "add --import FILE"),
        (["--contrast", "p.jsonl"], "name them with --variants HIGH,LOW"),
        (["--contrast", "p.jsonl", "--variants", "a,b"], "Activations need a model"),
        (["--activations"], "Activations need a model"),
        (["--joint", "nowhere"], "neither a folder nor a run called 'nowhere'"),
        (["--match", "nowhere"], "neither a folder nor a run called 'nowhere'"),
        (["--import", "nowhere.pt"], "There is no file nowhere.pt"),
    ],
)
def test_what_does_not_fit_is_refused(
    write_adapter: WriteAdapter,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    adapter = write_adapter(folder=tmp_path / "a")
    code = main(["factors", str(adapter), *options, "--workspace", str(tmp_path / "ws")])
    assert code == 2
    assert message in capsys.readouterr().err


def test_tables_of_the_first_version_can_be_read(
    write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    """Their factors are all of the weights, and what came later is unknown."""
    from analysis.adapters.load import load_adapter

    table, directions = weight_factors(load_adapter(write_adapter(folder=tmp_path / "a")))
    manifest = FactorsManifest(id="a", run="a", base_model=None, config={})
    write_factors(tmp_path, FactorTable(manifest, table, directions.astype(np.float32)))
    old = pd.read_parquet(tmp_path / "factors.parquet").loc[:, list(FIRST_VERSION)]
    old.to_parquet(tmp_path / "factors.parquet", index=False)
    found = read_factors(tmp_path).table
    assert list(found.columns) == list(COLUMNS)
    assert set(found["route"]) == {"weights"}
    assert (found["significant_energy"] == found["significant"]).all()
    assert found[["effect", "first_order", "significant_effect"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(found.loc[:, list(FIRST_VERSION)], old)
