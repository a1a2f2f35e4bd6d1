"""The dashboard as a web application: what its server adds to every answer, and whom it answers."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.starlette import App

_HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guarded:
    """Answers to known names alone; a page loads nothing from elsewhere and is in no frame.

    What a page shows may come from a model or a data set, and Markdown in it may name an image.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the headers to its answer."""
        if scope["type"] != "http":  # Streamlit checks the names of websockets itself
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if not _is_known(host):
            answer = PlainTextResponse(
                f"This dashboard does not answer to {host!r}; start it with --allow-host NAME.",
                status_code=421,
            )
            await answer(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS | {"Content-Security-Policy": _policy(host)})
            await send(message)

        await self._app(scope, receive, send_guarded)


class Rooted:
    """Tells a page where the server's root is.

    Streamlit's client would look for it under the page's own path first, and each miss is an error
    on the browser's console.
    """

    _SCRIPT = (
        b"<head><script>window.__streamlit = "
        b"{ BACKEND_BASE_URL: location.origin, MAIN_PAGE_BASE_URL: location.origin };</script>"
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the script to an answer that is a page."""
        if scope["type"] != "http" or "text/html" not in Headers(scope=scope).get("accept", ""):
            await self._app(scope, receive, send)
            return
        # The page is small, and a compressed one could not be added to.
        asked = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message | None = None
        body = b""

        async def send_rooted(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                page = Headers(raw=message["headers"]).get("content-type", "")
                if page.startswith("text/html"):
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                body += message.get("body", b"")
                if message.get("more_body", False):
                    return
                if body:  # there is none where the browser has the page already
                    body = body.replace(b"<head>", self._SCRIPT, 1)
                    MutableHeaders(scope=start)["content-length"] = str(len(body))
                await send(start)
                message = {"type": "http.response.body", "body": body}
            await send(message)

        await self._app({**scope, "headers": asked}, receive, send_rooted)


def _is_known(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    allowed: list[str] = config.get_option("server.allowedHosts")
    return not allowed or name.lower().rstrip(".") in allowed


def _policy(host: str) -> str:
    return (
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        f"connect-src 'self' data: blob: ws://{host} wss://{host}; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    )


_MIDDLEWARE = [Middleware(Guarded), Middleware(Rooted)]

app = App(str(Path(__file__).with_name("app.py")), middleware=_MIDDLEWARE)
