"""Serving the dashboard; free of other imports, so that its first page is not kept waiting."""

from __future__ import annotations

import argparse
import os
import sys

DEFAULT = "workspace"


def named_workspace(args: argparse.Namespace) -> str:
    """The folder named by --workspace, or by the environment, or the default."""
    return args.workspace or os.environ.get("GRASP_WORKSPACE") or DEFAULT


def dashboard(args: argparse.Namespace) -> None:
    """Serve the dashboard in this process's place."""
    serve(named_workspace(args), args)


def serve(workspace: str, args: argparse.Namespace) -> None:
    """Become the dashboard's process, so that Ctrl-C and signals reach it."""
    arguments = ["--workspace", workspace, "--port", str(args.port), "--host", args.host]
    arguments += ["--allow-remote"] * args.allow_remote + ["--open"] * args.open
    os.execv(sys.executable, [sys.executable, "-m", "dashboard", *arguments])
