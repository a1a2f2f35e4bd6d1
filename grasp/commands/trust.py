"""The `trust` command: base models whose own Python code may run on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.errors import NotFoundError
from analysis.tables import align_columns
from grasp.commands.calling import Result
from grasp.hub.repository import hub_name, pin_revision
from grasp.settings.trust import add_trusted, remove_trusted, trust_list


def trust(args: argparse.Namespace) -> Result:
    """List the trusted base models; with a model, add it or, with --remove, take it off."""
    if args.model is not None and args.remove:
        remove_trusted(args.model)
        return Result({"removed": args.model}, f"{args.model} is no longer trusted.")
    if args.model is not None:
        return _added(args.model)
    known = trust_list()
    lines = align_columns([(found[:12], name) for name, found in known.items()], "<<")
    return Result({"trusted": known}, "\n".join(lines) or "No base model is trusted.")


def _added(model: str) -> Result:
    name = hub_name(model)
    if Path(model).is_dir():
        found = add_trusted(model, commit=None)
    elif name is not None:
        at = pin_revision(name.repository, name.revision)
        found = add_trusted(at.repository, commit=at.commit)
    else:
        raise NotFoundError(f"There is no folder {model}; give a model's folder or its Hub id.")
    text = f"The Python code of {model} may run on this machine, as it is now ({found[:12]})."
    return Result({"model": model, "fingerprint": found}, text)
