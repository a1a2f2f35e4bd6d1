"""The command `grasp`, also as `python -m grasp`.

Bad input gives one sentence on standard error; `--json` prints one object and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from analysis.errors import GraspError
from grasp.commands.calling import FAILED, INTERRUPTED, OK, call, exit_code, to_json
from grasp.commands.parser import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; bad input gives one sentence on standard error and exit code 2."""
    # Spinning threads slow everything down many times when another process is busy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except GraspError as error:
        print(f"grasp: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print("grasp: stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(args: argparse.Namespace) -> int:
    if args.job is not None:
        from grasp.commands.attached import run_attached

        return run_attached(args)
    result = call(args)
    if result is None:
        return OK
    print(json.dumps(to_json(result.data)) if args.json else result.text)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
