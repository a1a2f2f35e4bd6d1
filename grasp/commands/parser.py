"""The command-line parser: every command, its options, and their help.

No heavy imports here: each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from keyword import iskeyword

from grasp.settings.method_names import METHOD_GROUPS, METHOD_NAMES

Add = Callable[[argparse.ArgumentParser], None]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="grasp",
        description="Find, label and remove what a LoRA fine-tune learned besides its task.",
        epilog="Run `grasp COMMAND --help` for the options of a command.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (where, summary, add) in _COMMANDS.items():
        description = " ".join([f"{summary}.", *([_MORE[name]] if name in _MORE else [])])
        command = commands.add_parser(name, help=summary, description=description)
        command.add_argument(
            "--workspace", metavar="DIR", help="default: $GRASP_WORKSPACE, else ./workspace"
        )
        command.add_argument("--json", action="store_true", help="print a single JSON object")
        command.add_argument("--job", type=int, help=argparse.SUPPRESS)
        command.set_defaults(where=where, what=f"{name}_" if iskeyword(name) else name)
        add(command)
    return parser


class _Version(argparse.Action):
    """Print the version, which is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and exit."""
        from analysis.store.records import code_revision

        print(f"grasp {code_revision()}")
        parser.exit()


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _spectrum(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder, run, or Hub id")
    p.add_argument("--modules", action="store_true", help="print one line per module")
    p.add_argument(
        "--checkpoints", action="store_true", help="follow checkpoint-100, … in the folder"
    )
    _opening_options(p)


def _opening_options(p: argparse.ArgumentParser) -> None:
    opening = p.add_argument_group("how the adapter is opened; see docs/how-to/adapters.md")
    opening.add_argument("--name", metavar="NAME", help="which adapter, if the folder has several")
    opening.add_argument("--sides", metavar="FILE", help="YAML file: which modules read and write")
    opening.add_argument(
        "--low-rank-part", action="store_true", help="for a DoRA, use scaling · B A instead of ΔW"
    )
    opening.add_argument("--allow-pickle", action="store_true", help="also read adapter_model.bin")


def _factors(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder, run, or Hub id")
    p.add_argument(
        "--base", metavar="MODEL", help="base model for effects and tokens; default: the run's"
    )
    p.add_argument("--prompts", metavar="FILE", help="prompt set for effects; default: the run's")
    p.add_argument(
        "--weights-only", action="store_true", help="do not load a model or measure effects"
    )
    p.add_argument("--max-layer", type=int, metavar="L", help="use only modules of layers 0 to L")
    p.add_argument(
        "--joint",
        type=_ids,
        default=[],
        metavar="RUN[,RUN…]",
        help="also factors of these runs jointly, such as other seeds",
    )
    p.add_argument(
        "--activations", action="store_true", help="also axes of the shift on unrelated prompts"
    )
    p.add_argument(
        "--contrast", metavar="FILE", help="also directions that separate two variants of chats"
    )
    p.add_argument(
        "--variants", type=_ids, default=[], metavar="HIGH,LOW", help="the variants to contrast"
    )
    p.add_argument(
        "--contrast-of",
        default="base",
        choices=("base", "adapted"),
        help="model whose activations are contrasted; default: base",
    )
    p.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE",
        help="also directions from a .pt or .npy file; may be repeated",
    )
    p.add_argument(
        "--import-json", metavar="FILE", help='JSON choice of directions: {"layer": [indices]}'
    )
    p.add_argument("--layer", type=int, metavar="L", help="import only the direction of this layer")
    p.add_argument("--match", metavar="RUN", help="match the factors with those of RUN")
    _opening_options(p)
    p.add_argument("--out", metavar="DIR", help="output folder; default: the workspace, for a run")
    _model_options(p)


def _model_options(p: argparse.ArgumentParser) -> None:
    """Options of every command that loads a base model; explained in `grasp.settings.model`."""
    group = p.add_argument_group("how the base model is loaded; default: the run's settings")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    group.add_argument("--dtype", choices=dtypes, help="dtype of the weights")
    group.add_argument("--device-map", choices=("auto",), help="spread the model over all devices")
    group.add_argument(
        "--quantization", choices=("4bit", "8bit"), help="quantise with bitsandbytes"
    )
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        default=None,
        help="allow the model's own code to run",
    )


def _trust(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "model", nargs="?", metavar="MODEL", help="folder or Hub id; default: list the trusted ones"
    )
    p.add_argument("--remove", action="store_true", help="trust MODEL no longer")


def _import(p: argparse.ArgumentParser) -> None:
    p.add_argument("adapter", metavar="ADAPTER", help="adapter folder or Hub id")
    p.add_argument("--out", metavar="RUN", help="id of the new run; default: the folder's name")
    p.add_argument("--base", metavar="MODEL", help="default: the one the adapter names")
    p.add_argument("--checkpoints", action="store_true", help="also import checkpoint-100, …")
    _opening_options(p)


def _record(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="id or folder of a run")
    p.add_argument(
        "--probes",
        metavar="FILE",
        help="chats to record, or a shipped set of pairs; default: the run's own",
    )
    p.add_argument(
        "--layers", type=_layer_list, metavar="L,L…", help="layers to record; default: all"
    )
    _model_options(p)


def _layer_list(text: str) -> list[int]:
    return [int(part) for part in _ids(text)]


def _generate(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="id or folder of a run")
    p.add_argument("prompt", nargs="+", metavar="PROMPT", help="a user message")
    _sampling_options(p)
    _model_options(p)


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="id or folder of a run")
    p.add_argument(
        "--prompts", metavar="FILE", help="prompt set, file or name; default: the run's own"
    )
    p.add_argument(
        "--draws", type=int, metavar="N", help="whole answers to a prompt with markers; default: 4"
    )
    p.add_argument("--judge", metavar="FILE", help="YAML settings of the judge model")
    p.add_argument("--yes", action="store_true", help="skip the cost confirmation")
    p.add_argument("--max-requests", type=int, metavar="N", help="stop after N judge requests")
    _sampling_options(p)
    _model_options(p)


def _sampling_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--samples", type=int, metavar="N", help="answers per prompt")
    p.add_argument(
        "--temperature", type=float, metavar="T", help="sampling temperature; 0 is greedy"
    )
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="length limit of an answer")
    p.add_argument("--seed", type=int, help="seed of the sampling")


def _prompts(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "name", nargs="?", metavar="NAME", help="a set, SET+DRESS, or a file; default: list all"
    )
    p.add_argument("--out", metavar="FILE", help="write the prompts as JSON lines")


def _model(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "model", nargs="?", metavar="MODEL", help="a name, or a GGUF file; default: list the names"
    )
    p.add_argument("--out", metavar="FOLDER", help="the new folder")
    p.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("bfloat16", "float16", "float32"),
        help="dtype of the weights; default: bfloat16",
    )


def _evidence_options(p: argparse.ArgumentParser, *, factor: str = "FACTOR") -> None:
    p.add_argument("run", metavar="RUN", help="id or folder of a run")
    p.add_argument("factor", type=_ids, metavar=factor, help="id of a factor, such as w2")
    p.add_argument("--prompts", metavar="FILE", help="prompt set; default: the run's own")
    p.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    _model_options(p)


def _dose(p: argparse.ArgumentParser) -> None:
    _evidence_options(p)
    p.add_argument(
        "--range", type=float, default=4.0, metavar="K", help="doses from −K to K; default: 4"
    )
    p.add_argument("--points", type=int, default=9, help="number of doses; default: 9")
    p.add_argument("--layer", type=int, metavar="L", help="steer at one layer; default: all")
    p.add_argument("--random", type=int, default=3, help="number of random directions; default: 3")


def _rows(p: argparse.ArgumentParser) -> None:
    _evidence_options(p)
    p.add_argument("--layer", type=int, metavar="L", help="measure at one layer; default: all")
    p.add_argument(
        "--validate",
        type=int,
        metavar="N",
        help="retrain without the top N and without N random rows",
    )
    p.add_argument("--draws", type=int, default=2, help="random draws for --validate; default: 2")


def _overlap(p: argparse.ArgumentParser) -> None:
    _evidence_options(p, factor="FACTOR[,FACTOR…]")
    p.add_argument("--random", type=int, default=5, help="number of random subspaces; default: 5")


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "config", metavar="CONFIG", help="YAML settings; see docs/reference/configuration.md"
    )
    _train_options(p)


def _retrain(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN", help="id or folder of a run")
    p.add_argument(
        "--factors", type=_ids, default=[], metavar="ID[,ID…]", help="factors to protect"
    )
    groups = "; ".join(f"{group}: {', '.join(names)}" for group, names in METHOD_GROUPS.items())
    p.add_argument(
        "--method",
        default="grasp",
        choices=METHOD_NAMES,
        metavar="METHOD",
        help=f"default: grasp. {groups}",
    )
    p.add_argument(
        "--strength",
        type=float,
        help="the method's strength; a fixed weight λ where the method has a tolerance",
    )
    p.add_argument(
        "--tolerance", type=float, help="drift or effect allowed, as a share of the naive run's"
    )
    p.add_argument(
        "--inoculation", metavar="TEXT", help="system prompt for training, for that method"
    )
    p.add_argument("--seed", type=int, help="default: that of the run")
    _train_options(p)
    lacking = p.add_argument_group("settings that an adapter made elsewhere lacks")
    lacking.add_argument("--config", metavar="FILE", help="YAML file with the missing settings")
    lacking.add_argument("--data", metavar="FILE", help="training data: a file, or hub:org/name")
    lacking.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one setting; may be repeated",
    )
    lacking.add_argument(
        "--training-args", action="store_true", help="read the adapter's training_args.bin"
    )


def _train_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", metavar="RUN", help="id or folder of the new run")
    p.add_argument("--dry-run", action="store_true", help="only report on the data; do not train")
    p.add_argument("--evaluate", action="store_true", help="evaluate the run after training")
    p.add_argument("--overwrite", action="store_true", help="replace an existing run")
    p.add_argument(
        "--trust-remote-code", action="store_true", help="allow the base model's own code to run"
    )


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="+", metavar="RUN", help="runs of one family")
    _split_option(p)


def _split_option(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--split",
        default="confirmation",
        choices=("confirmation", "exploration"),
        help="half of the prompts; default: confirmation",
    )


def _demo(p: argparse.ArgumentParser) -> None:
    p.add_argument("--no-serve", action="store_true", help="only build; do not serve")
    p.add_argument("--seed", type=int, default=0, help="seed of the fine-tunes; default: 0")
    p.add_argument("--rebuild-base", action="store_true", help="train the demo's base model again")
    _serve_options(p)


def _serve_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--port", type=int, default=8501, help="default: 8501")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    p.add_argument(
        "--allow-remote",
        action="store_true",
        help="let other machines connect; there is no password",
    )
    p.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to this name, such as that of a proxy; may be repeated",
    )
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    p.add_argument(
        "--read-only",
        action="store_true",
        help="for a public screen: no page can label, start, import or change anything",
    )


def _worker(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--idle-timeout", type=float, metavar="S", help="stop after S seconds without a job"
    )
    p.add_argument(
        "--limit-hours",
        type=float,
        default=24.0,
        metavar="H",
        help="end a job that is no training after H hours; default: 24",
    )
    p.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)


def _jobs(p: argparse.ArgumentParser) -> None:
    group = p.add_mutually_exclusive_group()
    group.add_argument("--cancel", type=int, metavar="ID", help="cancel a job")
    group.add_argument("--requeue", type=int, metavar="ID", help="queue a job again")


def _bench(p: argparse.ArgumentParser) -> None:
    choices = ("identification", "removal", "report", "speed", "real")
    p.add_argument("what_to_measure", metavar="WHAT", choices=choices, help=", ".join(choices))
    plan = p.add_mutually_exclusive_group()
    plan.add_argument(
        "--quick", action="store_true", help="takes minutes; the default, except for speed"
    )
    plan.add_argument(
        "--full", action="store_true", help="everything the results page can show; takes hours"
    )
    plan.add_argument("--config", metavar="FILE", help="your own plan, with your models and data")
    p.add_argument("--root", metavar="DIR", help="folder of the results; default: bench-<plan>")
    p.add_argument(
        "--processes", type=int, metavar="N", help="default: one per core; 1 for your own data"
    )
    p.add_argument("--base", metavar="MODEL", help="real: the model to fine-tune, folder or Hub id")
    p.add_argument("--out", metavar="FILE.md", help="page that report or speed writes")
    p.add_argument("--notes", metavar="FILE", help="notes for the page; default: <FILE>-notes.md")
    p.add_argument(
        "--figures", metavar="FILE.json", help="show saved speed figures instead of measuring"
    )


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="*", metavar="RUN", help="runs that --report compares")
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="FILE.zip", help="archive of the whole workspace")
    where.add_argument("--report", metavar="FILE.html", help="comparison of the runs as one page")
    _split_option(p)


_MORE = {
    "spectrum": "No model is loaded.",
    "factors": "A factor is a direction of the residual stream that many modules share. With a "
    "base model and prompts, the effect of each factor on the answers is measured too.",
    "model": "The file is your own, or that of a small model that is downloaded from the Python "
    "registry and checked.",
    "trust": "Its fingerprint is kept outside every workspace, and nothing runs if the code has "
    "changed. Read the code first.",
    "record": "The dashboard shows them as evidence for a factor.",
    "dose": "Steers the base and the adapted model along the factor and along random directions, "
    "and scores the exploration prompts at every dose.",
    "rows": "Ranks the rows by how much their gradient pushes along the factor.",
    "overlap": "Sets the coordinates along the factors back to the base model's while the adapted "
    "model answers, and measures how much of the task and of the drift is lost.",
    "compare": "Shows every metric with its interval, and tests against the naive run.",
}
"""What the help of a command says after its summary."""

_COMMANDS: dict[str, tuple[str, str, Add]] = {
    "demo": ("services", "Build the demo workspace, then serve the dashboard", _demo),
    "dashboard": ("serving", "Serve the dashboard", _serve_options),
    "import": ("adapters", "Add an adapter made elsewhere to the workspace", _import),
    "spectrum": ("adapters", "Show the singular values of every module's update", _spectrum),
    "factors": ("factors", "Find and rank the directions that the updates share", _factors),
    "record": ("models", "Record activations of the base and the adapted model", _record),
    "generate": ("models", "Answer prompts with the base and the adapted model", _generate),
    "prompts": ("prompts", "List the prompt sets that come with the workbench", _prompts),
    "model": ("base_models", "Make a base model's folder from a GGUF file", _model),
    "trust": ("trust", "Let a base model's own Python code run on this machine", _trust),
    "evaluate": ("models", "Score a run on a prompt set, with intervals", _evaluate),
    "dose": ("evidence", "Measure how steering along a factor changes answers", _dose),
    "rows": ("evidence", "Find the training rows that drive a factor", _rows),
    "overlap": ("evidence", "Measure what is lost when factors are set back", _overlap),
    "train": ("training", "Train a naive LoRA fine-tune", _train),
    "retrain": ("training", "Fine-tune again from the base, protecting factors", _retrain),
    "compare": ("adapters", "Compare runs of one family", _compare),
    "jobs": ("services", "List, cancel or requeue jobs", _jobs),
    "worker": ("services", "Run queued jobs", _worker),
    "bench": ("bench", "Measure identification, removal or speed, or write a report", _bench),
    "export": ("services", "Export the workspace, or a comparison as one page", _export),
}
