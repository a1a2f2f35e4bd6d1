"""Metrics and logs that are read while they are being written."""

from __future__ import annotations

from pathlib import Path

from analysis.store.logs import read_metrics, read_tail


def test_metrics_pass_over_half_written_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss": 2.0, "drift_by_layer": [0.1, 0.2]}\n'
        '[1]\n{"loss": 3}\n{"step": true}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo'
    )
    table = read_metrics(file)
    assert table["step"].tolist() == [1.0, 2.0]
    assert table["drift_layer_1"].tolist()[0] == 0.2
    assert read_metrics(tmp_path / "none").empty


def test_tail_reads_the_end(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("\n".join(f"line {i}" for i in range(20_000)))
    assert read_tail(file, lines=2) == "line 19998\nline 19999"
    assert read_tail(tmp_path / "none", lines=2) == ""
