"""Serving the dashboard, with few imports, so that it starts fast."""

from __future__ import annotations

import argparse
import os

from analysis.interpreter import module_command

DEFAULT = "workspace"


def named_workspace(args: argparse.Namespace) -> str:
    """The folder from --workspace, else from the environment, else the default."""
    return args.workspace or os.environ.get("GRASP_WORKSPACE") or DEFAULT


def dashboard(args: argparse.Namespace) -> None:
    """Serve the dashboard; it replaces this process."""
    serve_dashboard(named_workspace(args), args)


def serve_dashboard(workspace: str, args: argparse.Namespace) -> None:
    """Replace this process by the dashboard, so that Ctrl-C and signals reach it."""
    arguments = ["--workspace", workspace, "--port", str(args.port), "--host", args.host]
    arguments += [part for name in args.allow_host for part in ("--allow-host", name)]
    arguments += ["--allow-remote"] * args.allow_remote + ["--open"] * args.open
    arguments += ["--read-only"] * args.read_only
    command = module_command("dashboard", *arguments)
    os.execv(command[0], command)
