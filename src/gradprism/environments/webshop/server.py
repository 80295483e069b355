"""WebShop as a small local web page: a person plays a goal and sees what the agent sees.

Plain forms, no scripts, nothing from elsewhere. Bound to loopback; requests under another host's name and forms from other pages are
refused, so that no page in the same browser can play. One visitor: what is open in two tabs is one game.
"""

import hmac
import secrets
import threading
from collections.abc import Callable
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6
from urllib.parse import parse_qs, urlsplit

from gradprism.environments.protocol import Step, Task
from gradprism.environments.webshop.environment import WebshopEnvironment, WebshopSession
from gradprism.environments.webshop.shop import Part, page
from gradprism.runtime.errors import ConfigError, WriteError

MOST_FORM_BYTES = 10_000
SHOWN_ACTIONS = 30
STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class WebshopServer(ThreadingHTTPServer):
    """The game behind the page. `address` is its URL."""

    daemon_threads = True

    def __init__(self, environment: WebshopEnvironment, split: str, index: int, host: str, port: int) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.environment, self.lock = environment, threading.Lock()
        self.tasks: list[Task] = environment.tasks(split)
        self.token = secrets.token_urlsafe(16)
        self.session = WebshopSession(environment.store, environment.observation == "text_rich", environment.attributes)
        self.start(index)
        super().__init__((host, port), _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.hosts = {f"{name}:{self.server_port}" for name in (shown, "localhost")}
        self.address = f"http://{shown}:{self.server_port}/"

    def start(self, index: int) -> None:
        """Opens a goal; raises `ConfigError` where the split has none of that number."""
        if not 0 <= index < len(self.tasks):
            raise ConfigError(f"goal {index}: the split has those from 0 to {len(self.tasks) - 1}")
        self.index = index
        self.actions: list[tuple[str, bool]] = []
        self.step: Step = self.session.reset(self.tasks[index].id)

    def act(self, action: str) -> None:
        """Plays an action."""
        self.step = self.session.step(action)
        self.actions.append((action, self.step.info.valid))


def make_server(environment: WebshopEnvironment, split: str, index: int, host: str, port: int) -> WebshopServer:
    """A server that listens; raises `ConfigError` for an address that others could reach and `WriteError` for a port in use."""
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"--host {host}: is not a loopback address; choose 127.0.0.1 or ::1, and reach it from elsewhere through ssh -L"
        )
    try:
        return WebshopServer(environment, split, index, host, port)
    except OSError as error:
        raise WriteError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from None


class _Handler(BaseHTTPRequestHandler):
    server: WebshopServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds: a connection that says nothing does not stay

    def do_GET(self) -> None:
        """The page and its style."""
        if not self._trusted():
            return
        path = urlsplit(self.path).path
        if path == "/":
            with self.server.lock:
                html = render(self.server)
            self._answer(HTTPStatus.OK, html, "text/html")
        elif path == "/style.css":
            self._answer(HTTPStatus.OK, STYLE, "text/css")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "no such page\n", "text/plain")

    def do_POST(self) -> None:
        """An action, or another goal; then back to the page."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > MOST_FORM_BYTES:
            self.close_connection = True  # what was sent is not read
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the form is too large\n", "text/plain")
            return
        body = self.rfile.read(int(length))
        if not self._trusted():
            return
        form = {key: values[0] for key, values in parse_qs(body.decode("utf-8", "replace")).items()}
        if not hmac.compare_digest(form.get("token", "").encode(), self.server.token.encode()):
            self._answer(HTTPStatus.FORBIDDEN, "this form is not from this page; load it again\n", "text/plain")
            return
        try:
            with self.server.lock:
                if "goal" in form:
                    self.server.start(int(form["goal"]) if form["goal"].isdecimal() and len(form["goal"]) < 10 else -1)
                elif form.get("words", "").strip():
                    self.server.act(f"search[{form['words'].strip()}]")
                elif "action" in form:
                    self.server.act(form["action"])
        except ConfigError as error:
            self._answer(HTTPStatus.BAD_REQUEST, f"{error}\n", "text/plain")
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _trusted(self) -> bool:
        """True if the request is under this server's own name: another name that leads here belongs to somebody else's page."""
        if self.headers.get("Host") in self.server.hosts:
            return True
        self._answer(HTTPStatus.MISDIRECTED_REQUEST, f"open {self.server.address}\n", "text/plain")
        return False

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not worth a line."""


def render(server: WebshopServer) -> str:
    """The whole page, everything in it escaped."""
    step, session = server.step, server.session
    parts = page(session.goal, session.visit, server.environment.attributes)
    token = f'<input type="hidden" name="token" value="{escape(server.token)}">'

    def button(label: str, action: str, kind: str = "") -> str:
        style = f' class="{kind}"' if kind else ""
        named = f'name="action" value="{escape(action)}"'
        return f'<form method="post" action="/">{token}<button{style} {named}>{escape(label)}</button></form> '

    shown = _shop(parts, button, token) if not step.done else _end(step)
    later = "".join(
        f"<li{'' if valid else ' class=refused'}>{escape(action[:200])}{'' if valid else ' (nothing happens)'}</li>"
        for action, valid in server.actions[-SHOWN_ACTIONS:]
    )
    first = max(0, len(server.actions) - SHOWN_ACTIONS) + 1
    admissible = "\n".join(step.info.admissible) or "(the episode is over)"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>WebShop, goal {server.index}</title><link rel="stylesheet" href="/style.css"></head><body><main>
<header><h1>WebShop</h1><form method="post" action="/">{token}<label>Goal <input name="goal" size="6" inputmode="numeric"
value="{server.index}"></label> of {len(server.tasks)} <button>Open</button></form></header>
<section aria-label="Shop"><p class="goal">{escape(session.goal.text)}</p>{shown}</section>
<section aria-label="Agent"><h2>What the agent sees</h2><pre id="observation" tabindex="0">{escape(step.observation)}</pre>
<h2>What it may do</h2><pre id="admissible" tabindex="0">{escape(admissible)}</pre>
<h2>Actions so far</h2><ol start="{first}">{later}</ol></section></main></body></html>
"""


def _shop(parts: list[Part], button: Callable[..., str], token: str) -> str:
    html = (
        f'<form method="post" action="/" class="search">{token}<label>Search for <input name="words" maxlength="500"></label> '
        "<button>Search</button></form>"
    )
    goal_at = next(index for index, part in enumerate(parts) if part.text.strip() == "Instruction:") + 1
    in_product = False
    for part in parts[goal_at + 1 :]:
        action = f"click[{part.text.lower()}]"
        if part.kind == "link":
            html += ("</div>" if in_product else "") + f'<div class="product">{button(part.text, action, "asin")}'
            in_product = True
        elif part.kind == "option":
            html += button(part.text, action, "chosen" if part.chosen else "")
        elif part.kind == "button":
            html += button(part.text, action, "buy" if part.text == "Buy Now" else "")
        elif part.kind == "text":
            html += f'<p class="text">{escape(part.text)}</p>'
    return html + ("</div>" if in_product else "")


def _end(step: Step) -> str:
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in step.info.details.items())
    return f'<h2>Reward</h2><p class="reward">{step.info.score:.3f}</p><table>{rows}</table>'
