"""The studio's server: on this machine alone, for whoever has the token, and nothing but what the roots hold.

What is refused: a wrong token, a `Host` that is not this server (a page elsewhere whose name was bound to 127.0.0.1), a POST from another
origin. What pages may do is said by the content security policy: run the one script of this package, and ask this server.
"""

import hashlib
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, GradprismError, MissingFileError, WriteError
from gradprism.runtime.progress import say, tell, warn
from gradprism.studio.folders import Problem
from gradprism.studio.resources import JSON, ChangedError, Resources, to_json
from gradprism.studio.static_files import STATIC, read_static

HOST, PORT = "127.0.0.1", 8126
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
}
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
_MOST_BYTES = 1 << 24  # of what is posted
_STATUS: tuple[tuple[type[GradprismError], int], ...] = (
    (ChangedError, 409),
    (MissingFileError, 404),
    (FolderInUseError, 409),
    (ConfigError, 422),
    (DataError, 422),
    (WriteError, 422),
)


class Override(msgspec.Struct):
    """What is posted to override a route."""

    rows: list[int]
    side: str | None
    reason: str
    version: str


def make_app(resources: Resources, token: str, port: int) -> ASGIApp:
    """The application that answers at `port` of this machine."""

    async def page(request: Request) -> Response:
        if "token" in request.query_params:
            # Out of the address bar and the history; a browser keeps what stands behind the `#`.
            response: Response = RedirectResponse("/", status_code=303)
            response.set_cookie(_cookie(port), token, httponly=True, samesite="strict", path="/")
            return response
        return _static("index.html")

    async def static(request: Request) -> Response:
        return _static(request.url.path.removeprefix("/"))

    async def resource(request: Request) -> Response:
        answer = await run_in_threadpool(resources.get, request.path_params["path"], dict(request.query_params))
        tag = f'"{hashlib.blake2b(answer.content, digest_size=16).hexdigest()}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(answer.content, media_type=answer.type, headers={"ETag": tag})

    async def override(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != JSON:
            raise ConfigError(f"override: is not {JSON}; load the page again")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                raise ConfigError(f"override: has more than {_MOST_BYTES} bytes; choose fewer rows at once")
        try:
            wanted = msgspec.json.decode(body, type=Override)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(f"override: is not what the page sends ({error}); load the page again") from None
        ids = request.path_params["id"], request.path_params["route"]
        told = await run_in_threadpool(resources.override, *ids, wanted.rows, wanted.side, wanted.reason, wanted.version)
        return Response(to_json(told), media_type=JSON)

    routes = [
        Route("/", page),
        *(Route(f"/{name}", static) for name in STATIC if name != "index.html"),
        Route("/api/corpus/{id}/routes/{route}/override", override, methods=["POST"]),
        Route("/api/{path:path}", resource),
    ]
    handlers: dict[Any, Any] = {GradprismError: _failure, 404: _no_page, 405: _no_page, Exception: _unexpected}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, port)  # outside of all that Starlette answers itself


class Guard:
    """Lets through whoever has the token and asks this server by its own name; adds the headers to every answer."""

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, _cookie(port)
        self._hosts = {f"{name}:{port}" for name in (HOST, "localhost")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        request = Request(scope)
        refused = self._refusal(request)
        if refused:
            response: Response = PlainTextResponse(refused, status_code=403)
            if request.url.path.startswith("/api/"):
                response = Response(to_json({"error": {"message": refused, "hint": _OPEN}}), status_code=403, media_type=JSON)
            await response(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _refusal(self, request: Request) -> str:
        host = request.headers.get("host", "").lower()
        if host not in self._hosts:
            return f"refused: this server is not {host[:100]!r}"
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{name}" for name in self._hosts}:
            return "refused: another site's request"
        given = request.query_params.get("token") if request.url.path == "/" else None
        given = request.cookies.get(self._cookie, "") if given is None else given
        if not secrets.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode()):
            return "refused: wrong token"
        return ""


_OPEN = "open the address that `gradprism studio` printed"


def _cookie(port: int) -> str:
    return f"gradprism-{port}"  # browsers do not tell the ports of one host apart


def _static(name: str) -> Response:
    return Response(read_static(name), media_type=_TYPES[Path(name).suffix])


def _failure(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
    return Response(to_json({"error": Problem.of(error)}), status_code=status, media_type=JSON)


def _no_page(request: Request, error: Exception) -> Response:
    problem = Problem(f"{request.url.path[:200]!r}: no such page", "go back to the first one")
    return Response(to_json({"error": problem}), status_code=getattr(error, "status_code", 404), media_type=JSON)


def _unexpected(request: Request, error: Exception) -> Response:
    problem = Problem(
        f"{request.url.path[:200]}: failed ({type(error).__name__})", "see the terminal of `gradprism studio`, and report it"
    )
    return Response(to_json({"error": problem}), status_code=500, media_type=JSON)


def serve(resources: Resources, port: int | None = None, browser: bool = True) -> None:
    """Answers until it is interrupted; the address, with its token, is printed, and opened in a browser.

    `port`: default `PORT`, or any free one where that is taken. Raises `ConfigError` for a port that is taken.
    """
    listening = _listen(port)
    number = listening.getsockname()[1]
    ended = threading.Event()
    threading.Thread(target=_warm, args=(resources, ended), daemon=True).start()
    token = secrets.token_urlsafe(24)
    address = f"http://{HOST}:{number}/?token={token}"
    config = uvicorn.Config(make_app(resources, token, number), log_level="error", access_log=False, server_header=False)
    server = _Server(config, lambda: _announce(address, browser))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()
        listening.close()


def _warm(resources: Resources, ended: threading.Event) -> None:
    """Reads ahead; what fails because the interpreter ends meanwhile (no thread can be begun any more) is nobody's concern."""
    try:
        resources.warm()
    except Exception:
        if not ended.is_set():
            raise


class _Server(uvicorn.Server):
    """Says when it has begun to listen."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun()


def _announce(address: str, browser: bool) -> None:
    tell(address)
    sys.stdout.flush()
    say("only this machine is answered; Ctrl-C ends it")
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _listen(port: int | None) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, PORT if port is None else port))
    except OSError as error:
        if port is not None:
            listening.close()
            raise ConfigError(f"--port {port}: {error.strerror or error}; give another, or none") from None
        warn(f"port {PORT} is taken; another one is used")
        listening.bind((HOST, 0))
    return listening
