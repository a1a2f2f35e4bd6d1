"""The words of the command line: every command, its options, and what each means.

Free of heavy imports, since each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from keyword import iskeyword
from typing import Any

METHOD_GROUPS = {
    "GRASP and its parts": (
        "grasp",
        "grasp-projection",
        "grasp-anchor-task",
        "grasp-write",
        "grasp-write-indirect",
        "grasp-clamp",
        "grasp-shared",
    ),
    "controls": ("naive", "random"),
    "rivals": (
        "caft",
        "ablation",
        "caft-footprint",
        "ablation-footprint",
        "steering",
        "preventative-steering",
        "inoculation",
        "kl-neutral",
        "kl-task",
        "kl-self",
        "feature-distillation",
        "wise-ft",
        "spectral-truncation",
        "intruder-shrinkage",
        "removal",
        "early-stopping",
        "low-rank",
        "weight-decay",
    ),
}
"""As `grasp.settings.methods` has them, which would be slow to import just to parse a line."""

METHOD_NAMES = tuple(name for group in METHOD_GROUPS.values() for name in group)


Add = Callable[[argparse.ArgumentParser], None]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="grasp",
        description="Find, label and remove what a LoRA fine-tune learned beside its task.",
        epilog="`grasp COMMAND --help` tells more of one command.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (where, summary, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        command.add_argument(
            "--workspace", metavar="DIR", help="default: $GRASP_WORKSPACE, else ./workspace"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object only")
        command.add_argument("--job", type=int, help=argparse.SUPPRESS)
        command.set_defaults(where=where, what=f"{name}_" if iskeyword(name) else name)
        add(command)
    return parser


class _Version(argparse.Action):
    """Print the version; the lookup waits until it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and leave."""
        from analysis.store.records import code_revision

        print(f"grasp {code_revision()}")
        parser.exit()


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _spectrum(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder, a run, or a Hub id")
    p.add_argument("--modules", action="store_true", help="a line for each module")
    p.add_argument("--checkpoints", action="store_true", help="of checkpoint-100, … of the folder")
    _opening_options(p)


def _opening_options(p: argparse.ArgumentParser) -> None:
    opening = p.add_argument_group("how the adapter is opened; see docs/how-to/adapters.md")
    opening.add_argument("--name", metavar="NAME", help="which of several adapters in the folder")
    opening.add_argument("--sides", metavar="FILE", help="YAML of which modules read and write")
    opening.add_argument(
        "--low-rank-part", action="store_true", help="of a DoRA, take scaling · B A, not its ΔW"
    )
    opening.add_argument("--allow-pickle", action="store_true", help="read adapter_model.bin too")


def _factors(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder, or a run")
    p.add_argument("--base", metavar="MODEL", help="base model, for effects and for tokens")
    p.add_argument("--prompts", metavar="FILE", help="prompts to measure effects on")
    p.add_argument("--weights-only", action="store_true", help="never load a model")
    p.add_argument("--max-layer", type=int, metavar="L", help="only modules of layers 0 to L")
    p.add_argument(
        "--joint", type=_ids, default=[], metavar="RUN[,RUN…]", help="and of these seeds together"
    )
    p.add_argument("--activations", action="store_true", help="and axes of what is shifted")
    p.add_argument("--contrast", metavar="FILE", help="and what tells chats of two variants apart")
    p.add_argument("--variants", type=_ids, default=[], metavar="HIGH,LOW", help="of --contrast")
    p.add_argument("--contrast-of", default="base", choices=("base", "adapted"), help="which model")
    p.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="and directions found elsewhere, .pt or .npy; may be repeated",
    )
    p.add_argument("--import-json", metavar="FILE", help='which of them: {"layer": [indices]}')
    p.add_argument("--layer", type=int, metavar="L", help="only the one of this layer")
    p.add_argument("--match", metavar="RUN", help="pair the factors with another run's")
    _opening_options(p)
    p.add_argument("--out", metavar="DIR", help="default: the workspace, for a run of it")
    _model_options(p)


def _model_options(p: argparse.ArgumentParser) -> None:
    """Of every command that loads a base model; `grasp.settings.model` has what they mean."""
    group = p.add_argument_group(
        "how the base model is loaded, where not as the run's settings say"
    )
    dtypes = ("auto", "float32", "bfloat16", "float16")
    group.add_argument("--dtype", choices=dtypes, help="of its weights")
    group.add_argument("--device-map", choices=("auto",), help="spread it over all devices")
    group.add_argument("--quantization", choices=("4bit", "8bit"), help="through bitsandbytes")
    group.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run the model's own code"
    )


def _import(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder, or a Hub id")
    p.add_argument("--out", metavar="RUN", help="id of the new run; default: the folder's name")
    p.add_argument("--base", metavar="MODEL", help="default: what the adapter names")
    p.add_argument("--checkpoints", action="store_true", help="and checkpoint-100, … of the folder")
    _opening_options(p)


def _record(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument("--probes", metavar="FILE", help="chats to record; default: the run's own")
    p.add_argument("--layers", type=_layer_list, metavar="L,L…", help="default: all")
    _model_options(p)


def _layer_list(text: str) -> list[int]:
    return [int(part) for part in _ids(text)]


def _generate(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument("prompt", nargs="+", metavar="PROMPT", help="what the user says")
    _sampling_options(p)
    _model_options(p)


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument(
        "--prompts", metavar="FILE", help="prompt set, or its name; default: the run's own"
    )
    p.add_argument("--judge", metavar="FILE", help="settings of the model that judges answers")
    p.add_argument("--yes", action="store_true", help="judge, whatever it takes")
    p.add_argument("--max-requests", type=int, metavar="N", help="to the judge, repeats counted")
    _sampling_options(p)
    _model_options(p)


def _sampling_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--samples", type=int, metavar="N", help="answers a prompt, at a temperature")
    p.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer")
    p.add_argument("--seed", type=int, help="of what is drawn")


def _prompts(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="NAME", help="a set, set+dress, or a file")
    p.add_argument("--out", metavar="FILE", help="write the prompts there, one JSON object a line")


def _evidence_options(p: argparse.ArgumentParser, *, factor: str = "FACTOR") -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument("factor", type=_ids, metavar=factor, help="such as w2")
    p.add_argument("--prompts", metavar="FILE", help="prompt set; default: the run's own")
    p.add_argument("--seed", type=int, default=0, help="of random directions and draws")
    _model_options(p)


def _dose(p: argparse.ArgumentParser) -> None:
    _evidence_options(p)
    p.add_argument("--range", type=float, default=4.0, metavar="K", help="doses from −K to K")
    p.add_argument("--points", type=int, default=9, help="how many doses; default: 9")
    p.add_argument("--layer", type=int, metavar="L", help="steer at one layer; default: all")
    p.add_argument("--random", type=int, default=3, help="random directions; default: 3")


def _rows(p: argparse.ArgumentParser) -> None:
    _evidence_options(p)
    p.add_argument("--layer", type=int, metavar="L", help="measure at one layer; default: all")
    p.add_argument(
        "--validate", type=int, metavar="N", help="retrain without the top N, and N random, rows"
    )
    p.add_argument("--draws", type=int, default=2, help="random draws of --validate; default: 2")


def _overlap(p: argparse.ArgumentParser) -> None:
    _evidence_options(p, factor="FACTOR[,FACTOR…]")
    p.add_argument("--random", type=int, default=5, help="random subspaces; default: 5")


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "config", metavar="CONFIG", help="YAML settings; see docs/reference/configuration.md"
    )
    _train_options(p)


def _retrain(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN")
    p.add_argument(
        "--factors", type=_ids, default=[], metavar="ID[,ID…]", help="where the method needs them"
    )
    groups = "; ".join(f"{group}: {', '.join(names)}" for group, names in METHOD_GROUPS.items())
    p.add_argument("--method", default="grasp", choices=METHOD_NAMES, metavar="METHOD", help=groups)
    p.add_argument(
        "--strength",
        type=float,
        help="the method's strength; for GRASP a fixed weight λ in place of the tolerance",
    )
    p.add_argument("--tolerance", type=float, help="drift allowed, in base standard deviations")
    p.add_argument(
        "--inoculation", metavar="TEXT", help="system prompt of training, for that method"
    )
    p.add_argument("--seed", type=int)
    _train_options(p)
    lacking = p.add_argument_group("for an adapter made elsewhere, what its folder does not say")
    lacking.add_argument("--config", metavar="FILE", help="YAML of the settings that are missing")
    lacking.add_argument("--data", metavar="FILE", help="training data, or hub:org/name")
    lacking.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="one setting; repeatable"
    )
    lacking.add_argument(
        "--training-args", action="store_true", help="read the adapter's training_args.bin"
    )


def _train_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="RUN", help="id or folder of the new run")
    p.add_argument("--dry-run", action="store_true", help="only say what the data would be")
    p.add_argument("--evaluate", action="store_true", help="evaluate the run when it is trained")
    p.add_argument("--overwrite", action="store_true", help="replace a run of that name")


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("--split", default="confirmation", choices=("confirmation", "exploration"))


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--no-serve", action="store_true", help="build only")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rebuild-base", action="store_true", help="train the base model again")
    _serve_options(p)


def _serve_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--port", type=int, default=8501)
    p.add_argument("--host", default="127.0.0.1", help="address to listen on")
    p.add_argument("--allow-remote", action="store_true", help="listen beyond this machine")
    p.add_argument("--open", action="store_true", help="open the page in a browser")


def _worker(p: argparse.ArgumentParser) -> None:
    p.add_argument("--idle-timeout", type=float, metavar="S", help="end after S idle seconds")


def _jobs(p: argparse.ArgumentParser) -> None:
    group = p.add_mutually_exclusive_group()
    group.add_argument("--cancel", type=int, metavar="ID")
    group.add_argument("--requeue", type=int, metavar="ID")


def _bench(p: argparse.ArgumentParser) -> None:
    choices = ("identification", "removal", "report", "speed")
    p.add_argument("what_to_measure", metavar="WHAT", choices=choices, help=", ".join(choices))
    plan = p.add_mutually_exclusive_group()
    plan.add_argument("--quick", action="store_true", help="minutes; the default but for speed")
    plan.add_argument("--full", action="store_true", help="all of the page; about an hour")
    plan.add_argument("--config", metavar="FILE", help="a plan of your own, with models and data")
    p.add_argument("--root", metavar="DIR", help="where cells lie; default: bench-<plan>")
    p.add_argument("--processes", type=int, metavar="N", help="default: one a core; 1 for own data")
    p.add_argument("--out", metavar="FILE.md", help="what report, or speed, writes")
    p.add_argument("--notes", metavar="FILE", help="of that page; default: <FILE>-notes.md")
    p.add_argument("--figures", metavar="FILE.json", help="show these of speed; measure nothing")


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="*", metavar="RUN", help="what a report compares")
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="FILE.zip", help="the whole workspace")
    where.add_argument("--report", metavar="FILE.html", help="a comparison of RUN… as one page")
    p.add_argument("--split", default="confirmation", choices=("confirmation", "exploration"))


_COMMANDS: dict[str, tuple[str, str, Add]] = {
    "demo": ("services", "Build the demo workspace, then serve the dashboard", _demo),
    "dashboard": ("serving", "Serve the dashboard", _serve_options),
    "import": ("adapters", "Add an adapter made elsewhere to the workspace", _import),
    "spectrum": ("adapters", "Singular values of every module's update", _spectrum),
    "factors": ("factors", "Directions that the updates share, ranked", _factors),
    "record": ("models", "Record activations of base and adapted model", _record),
    "generate": ("models", "Answers of base and adapted model to prompts", _generate),
    "prompts": ("prompts", "Prompt sets that come with the workbench", _prompts),
    "evaluate": ("models", "Rates and scores on a prompt set, with intervals", _evaluate),
    "dose": ("evidence", "What steering along a factor does to the answers", _dose),
    "rows": ("evidence", "Training rows that drive a factor", _rows),
    "overlap": ("evidence", "What of the task goes when factors are set back", _overlap),
    "train": ("training", "A naive LoRA fine-tune", _train),
    "retrain": ("training", "Fine-tune again from the base, protecting factors", _retrain),
    "compare": ("adapters", "The trade-off table of runs of one family", _compare),
    "jobs": ("services", "The queue: list, cancel, queue again", _jobs),
    "worker": ("services", "Run queued jobs", _worker),
    "bench": ("bench", "Measure identification, removal or speed, or write a page of it", _bench),
    "export": ("services", "The workspace as one archive, or a comparison as one page", _export),
}
