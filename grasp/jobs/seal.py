"""Tells jobs that were queued here from those that came with a workspace.

A database travels with its workspace, so whoever wrote it may have put jobs into it.  A seal is made
with a key of this person on this machine, which lies outside every workspace.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets

from analysis.store.database import Database, Job
from grasp.settings.trust import own_folder

KEY_VARIABLE = "GRASP_JOB_KEY"
"""Environment variable with a key that machines share whose workers run each other's jobs."""


def make_seal(database: Database, job: Job) -> str:
    """The seal of what a job asks for, in this database."""
    words = [database.place, job.kind, job.request]
    return hmac.new(_key(), json.dumps(words, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def is_sealed(database: Database, job: Job) -> bool:
    """Whether a job was queued in this database with this machine's key."""
    return hmac.compare_digest(job.seal or "", make_seal(database, job))


def _key() -> bytes:
    if shared := os.environ.get(KEY_VARIABLE):
        return shared.encode()
    file = own_folder() / "job-key"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"job-key.{os.getpid()}")
        new.touch(mode=0o600)
        new.write_text(secrets.token_hex(32), encoding="ascii")
        try:
            os.link(new, file)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            new.unlink()
    return file.read_bytes()
