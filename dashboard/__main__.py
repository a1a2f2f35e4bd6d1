"""`python -m dashboard`: serve the dashboard of one workspace from this process."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from analysis.errors import GraspError, InputError
from analysis.store.reading import ReadOnlyWorkspace
from dashboard import READ_ONLY_VARIABLE, WORKSPACE_VARIABLE

APP = Path(__file__).with_name("app.py")
DEFAULT_PORT = 8501


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; print one line with the address when ready."""
    options = _parser().parse_args(arguments)
    try:
        host = check_host(options.host, allow_remote=options.allow_remote)
        port = find_port(options.port, host)
        _check_workspace(options.workspace, read_only=options.read_only)
    except GraspError as error:
        print(error, file=sys.stderr)
        return 2
    os.environ[WORKSPACE_VARIABLE] = str(options.workspace.resolve())
    # Only what was typed counts: a variable left over from elsewhere neither opens nor locks.
    os.environ[READ_ONLY_VARIABLE] = "1" if options.read_only else ""
    url = f"http://{_shown(host)}:{port}"
    local = f"http://{_local(host)}:{port}"
    threading.Thread(target=_announce, args=(url, local, options.open), daemon=True).start()
    _serve(host, port, names=options.allow_host)
    return 0


def check_host(host: str, *, allow_remote: bool) -> str:
    """Return `host` if only this machine can connect, or if remote access is allowed.

    Raises:
        InputError: another machine could connect, and `allow_remote` is off.
    """
    if allow_remote or _is_loopback(host):
        return host
    raise InputError(
        f"Listening on {host} lets other machines open this workspace without a password. "
        "Use 127.0.0.1, or add --allow-remote if that is intended."
    )


def find_port(port: int, host: str) -> int:
    """Return a free port: `port` itself, or from the default 8501 upwards the first free one.

    Raises:
        InputError: the requested port is in use.
    """
    if port != DEFAULT_PORT:
        if not _is_free(port, host):
            raise InputError(f"Port {port} is in use; choose another, or omit --port.")
        return port
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + 100):
        if _is_free(candidate, host):
            if candidate != DEFAULT_PORT:
                print(f"Port {DEFAULT_PORT} is in use; using {candidate}.", file=sys.stderr)
            return candidate
    raise InputError(
        f"Ports {DEFAULT_PORT} to {DEFAULT_PORT + 99} are all in use; choose another with --port."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp dashboard", description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), metavar="DIR")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="let other machines connect; there is no password",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also answer to this name, such as that of a proxy; may be repeated",
    )
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="for a public screen: no page can label, start, import or change anything",
    )
    return parser


def _check_workspace(root: Path, *, read_only: bool) -> None:
    if read_only:
        ReadOnlyWorkspace.open(root)
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file, but a workspace is a folder; choose another path.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_free(port: int, host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _local(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, _shown(host))


def _announce(url: str, local: str, open_browser: bool) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{local}/_stcore/health", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    else:
        print(f"The dashboard did not answer at {url} within 30 s.", file=sys.stderr)
        return
    import_module("dashboard.views.home")  # so that the first page opens faster
    print(f"Dashboard: {url}", flush=True)
    if open_browser:
        webbrowser.open(url)


def known_names(host: str, names: Sequence[str]) -> list[str]:
    """The names that the server answers to; a page elsewhere may give this address another one."""
    found = ["localhost", "127.0.0.1", "[::1]", host]
    if not _is_loopback(host):
        import psutil

        found += [socket.gethostname(), socket.getfqdn()]
        addresses = [one.address for each in psutil.net_if_addrs().values() for one in each]
        found += [f"[{one}]" if ":" in one else one for one in addresses]
    return list(dict.fromkeys(name.lower() for name in (*found, *names)))


def _serve(host: str, port: int, *, names: Sequence[str]) -> None:
    """Run Streamlit's server here; address and port override any configuration file."""
    from streamlit import config
    from streamlit.web import bootstrap

    flags = {
        "server_address": host,
        "server_port": port,
        "server_headless": True,
        "server_fileWatcherType": "none",
        "browser_gatherUsageStats": False,
        "browser_serverAddress": _shown(host),
        "logger_hideWelcomeMessage": True,
        "logger_level": "error",
    }
    flags["server_allowedHosts"] = known_names(host, names)
    # Streamlit looks for `.streamlit/config.toml` next to the main script only if told its path.
    config._main_script_path = str(APP)
    bootstrap.load_config_options(flags)
    with suppress(KeyboardInterrupt):
        bootstrap.run_asgi_app(str(APP), "dashboard.served:app", [], flags)


if __name__ == "__main__":
    raise SystemExit(main())
