"""A small server of OpenAI's completions interface, in a thread of this process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Gives the answer's token ids for a prompt's, and whether it has ended.
Answer = Callable[[list[int]], tuple[list[int], bool]]
# Gives status, body and perhaps Retry-After in place of an answer, for a path's last part and the number, from 1, of its request; None:
# answer as ever.
Reply = Callable[[str, int], tuple[int, bytes] | tuple[int, bytes, str] | None]


class CompletionsServer(ThreadingHTTPServer):
    """`says` is how it tells an answer: its `ids`, as vLLM's return_token_ids; `tokens` as token_id:N; or `text` alone.

    Its first `busy` answers are 503; `reply` may stand in for any. `asked` are the requests' bodies.
    """

    def __init__(
        self,
        answer: Answer,
        decode: Callable[[list[int]], str],
        says: str = "ids",
        busy: int = 0,
        reply: Reply = lambda path, number: None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.looked = reply, 0
        self.answer, self.decode, self.says, self.busy = answer, decode, says, busy
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: CompletionsServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.looked += 1
        if told := self.server.reply("models", self.server.looked):
            return self._stand_in(*told)
        return self._send(200, {"data": [{"id": "served", "root": "some/model", "max_model_len": 1024}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(body)
            number = len(server.asked)
        if told := server.reply("completions", number):
            return self._stand_in(*told)
        with server.lock:
            if server.busy:
                server.busy -= 1
                return self._send(503, {"error": "busy"})
            ids, ended = server.answer(body["prompt"])
        if body["model"] != "served":
            return self._send(404, {"error": f"no model {body['model']}"})
        choice: dict[str, Any] = {"text": server.decode(ids), "finish_reason": "stop" if ended else "length"}
        if server.says != "text":
            choice["logprobs"] = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": [-0.25] * len(ids)}
        if server.says == "ids":
            choice |= {"token_ids": ids, "logprobs": {**choice["logprobs"], "tokens": ["?"] * len(ids)}}
        return self._send(200, {"choices": [choice]})

    def _stand_in(self, *told: Any) -> None:
        self._send(*told)

    def _send(self, code: int, body: Any, retry_after: str = "") -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        if retry_after:
            self.send_header("Retry-After", retry_after)
        if text.startswith(b"\x1f\x8b"):
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serving(answer: Answer, decode: Callable[[list[int]], str], **options: Any) -> Iterator[CompletionsServer]:
    """A server that runs inside the block."""
    server = CompletionsServer(answer, decode, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
