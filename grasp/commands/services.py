"""Commands around the workspace: demo, worker, jobs, export."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from analysis.errors import InputError
from analysis.store.workspace import Workspace
from analysis.tables import align_columns
from analysis.text import size_text
from grasp.commands.calling import Result
from grasp.commands.resolve import find_workspace, make_workspace, run_folder
from grasp.commands.serving import serve_dashboard
from grasp.jobs import queue
from grasp.jobs.progress import TerminalProgress


def demo(args: argparse.Namespace) -> Result | None:
    """Build the demo workspace if it is missing, then serve it."""
    if args.rebuild_base:
        return _rebuild_base(args)
    from grasp.demo import build, summary

    workspace = Workspace.create(args.workspace or "demo-workspace")
    build(workspace, seed=args.seed)
    data, text = summary(workspace)
    if args.no_serve:
        return Result(data, text)
    print(text, flush=True)
    serve_dashboard(str(workspace.root), args)
    return None


def worker(args: argparse.Namespace) -> None:
    """Run queued jobs until stopped, or until idle for --idle-timeout seconds."""
    from grasp.commands.attached import serve_jobs
    from grasp.commands.worker import run_jobs

    if args.serve:
        serve_jobs(make_workspace(args))
    else:
        run_jobs(make_workspace(args), idle_timeout=args.idle_timeout, limit_hours=args.limit_hours)


def jobs(args: argparse.Namespace) -> Result:
    """List the jobs, newest first; with options, cancel or requeue one first."""
    database = make_workspace(args).database
    queue.reconcile(database)
    if args.cancel is not None:
        queue.request_cancel(database, args.cancel)
    if args.requeue is not None:
        queue.requeue(database, args.requeue)
    found = queue.list_recent(database)
    rows = [
        {
            "id": job.id,
            "kind": job.kind,
            "title": job.title,
            "status": job.status,
            "step": job.step,
            "total": job.total,
            "output": job.output,
            "error": job.error,
            "command": ["grasp", *job.argv],
        }
        for job in found
    ]
    cells = [(str(job.id), job.status, f"{job.step}/{job.total}", job.title) for job in found]
    lines = align_columns(cells, "><>")
    return Result({"jobs": rows}, "\n".join(lines) or "No jobs yet.")


def export(args: argparse.Namespace) -> Result:
    """Pack the workspace into a zip archive that opens elsewhere, or write a report."""
    if args.report:
        return _report(args)
    if args.runs:
        raise InputError("An archive holds every run; name runs only with --report FILE.html.")
    workspace = make_workspace(args)
    out = Path(args.out).resolve()
    if out.suffix != ".zip" or out.is_relative_to(workspace.root):
        raise InputError(f"{args.out} must end in .zip and be outside the workspace.")
    with workspace.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.make_archive(str(out.with_suffix("")), "zip", workspace.root)
    size = out.stat().st_size
    return Result({"archive": str(out), "bytes": size}, f"{out}: {size_text(size)}")


def _report(args: argparse.Namespace) -> Result:
    from analysis.comparison.report import render_report

    out = Path(args.report).resolve()
    if out.suffix != ".html" or not out.parent.is_dir():
        raise InputError(f"{args.report} must end in .html and be in an existing folder.")
    workspace = find_workspace(args, *args.runs)
    ids = [run_folder(workspace, word)[0].name for word in args.runs]
    out.write_text(render_report(workspace, ids, split=args.split), encoding="utf-8")
    size = out.stat().st_size
    return Result({"report": str(out), "bytes": size}, f"{out}: {size_text(size)}")


def _rebuild_base(args: argparse.Namespace) -> Result:
    from grasp.world.base_model import compare_bases, rebuild_base

    target = Path(args.workspace or "demo-workspace") / "models" / "rebuilt-base"
    target.parent.mkdir(parents=True, exist_ok=True)
    show = TerminalProgress()
    rebuild_base(target, progress=lambda step, total, loss: show(step, total, f"loss {loss:.3f}"))
    found = compare_bases(target)
    lines = [f"{name}: {value}" for name, value in found.items()]
    return Result(found, "\n".join([f"Rebuilt into {target}", *lines]))
