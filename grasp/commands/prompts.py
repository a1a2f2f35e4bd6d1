"""The command that lists prompt sets, or writes one as JSON lines."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from analysis.errors import InputError
from analysis.store.records import write_jsonl
from analysis.tables import align_columns
from analysis.values import Json
from grasp.commands.calling import Result
from grasp.prompts.sets import prompts_sha256, read_prompts, shipped_set, shipped_sets


def prompts(args: argparse.Namespace) -> Result:
    """List the sets that come with the workbench, or show one of them or one's own file."""
    if args.name is None:
        if args.out:
            raise InputError("--out needs a prompt set to write; name one.")
        rows = [_about(name) for name in shipped_sets()]
        lines = align_columns([cells for row in rows for cells in _cells(row)])
        return Result({"sets": rows}, "\n".join(lines))
    found = read_prompts(args.name)
    scorers = Counter(prompt.scorer for prompt in found)
    data: Json = {
        "set": args.name,
        "sha256": prompts_sha256(args.name),
        "prompts": len(found),
        "items": len({prompt.cluster for prompt in found}),
        "groups": sorted({prompt.group for prompt in found}),
        "scorers": dict(scorers),
    }
    rows_out = [prompt.model_dump(exclude_unset=True) for prompt in found]
    if args.out:
        write_jsonl(Path(args.out), rows_out)
        data["out"] = str(args.out)
        return Result(data, f"Wrote {len(found)} prompts of {args.name} to {args.out}.")
    lines = [f"{args.name}: {len(found)} prompts about {data['items']} items"]
    lines += [f"  {prompt.id}: {prompt.messages[-1].content.strip()}" for prompt in found]
    return Result(data, "\n".join(lines))


def _about(name: str) -> Json:
    one = shipped_set(name)
    found = one.prompts()
    return {
        "set": name,
        "version": one.version,
        "description": one.description.strip(),
        "prompts": len(found),
        "items": len(one.items),
        "scorers": sorted({prompt.scorer for prompt in found}),
        "dressed": [f"{name}+{dress}" for dress in one.dressed],
    }


def _cells(row: Json) -> list[tuple[str, str]]:
    scorers, dressed = ", ".join(row["scorers"]), ", ".join(row["dressed"])
    return [
        (row["set"], f"version {row['version']}, {row['prompts']} prompts about "
         f"{row['items']} items, scorer {scorers}"),
        ("", row["description"]),
        *([("", f"dressed: {dressed}")] if dressed else []),
    ]  # fmt: skip
