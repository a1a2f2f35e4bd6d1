"""The lineage of runs as a Mermaid flow chart."""

from __future__ import annotations

import re
from collections.abc import Sequence

from analysis.store.records import RunManifest

_UNSAFE = re.compile(r"[^\w .,:+/-]")


def lineage(runs: Sequence[RunManifest]) -> str:
    """Mermaid source: base model → naive run → its factors → the runs that protect them."""
    nodes: dict[str, str] = {}
    edges: list[str] = []

    def node(kind: str, name: str, text: str, shape: tuple[str, str]) -> str:
        key = f"{kind}:{name}"
        if key not in nodes:
            nodes[key] = f'n{len(nodes)}{shape[0]}"{_plain(text)}"{shape[1]}'
        return nodes[key].split(shape[0], 1)[0]

    for run in runs:
        box = node("run", run.id, f"{run.id}: {run.method}", ("[", "]"))
        if not run.factors:
            base = node("base", run.base_model, run.base_model, ("([", "])"))
            edges.append(f"{base} --> {box}")
            continue
        held = ", ".join(factor.rpartition("/")[2] for factor in run.factors)
        factors = node("factors", f"{run.root}/{held}", f"factors {held}", ("{{", "}}"))
        root = node("run", run.root, f"{run.root}: naive", ("[", "]"))
        edges += [f"{root} --> {factors}", f"{factors} --> {box}"]
    lines = [*nodes.values(), *dict.fromkeys(edges)]
    return "\n".join(["flowchart LR", *(f"  {line}" for line in lines)])


def _plain(text: str) -> str:
    return _UNSAFE.sub("_", text)[:80]
