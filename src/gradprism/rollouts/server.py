"""Answers of a server of OpenAI's completions interface, such as `vllm serve` or SGLang's, with many requests in flight.

Prompts go as token ids, so that the server's own chat template plays no part. Where it tells the answer's token ids (vLLM's
`return_token_ids`, or tokens as `token_id:N`) these are taken; else its text is encoded anew.
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from gradprism.rollouts.generator import Generated
from gradprism.runtime.errors import ConfigError, ModelError, one_line

RETRIES = 5  # of a request that finds no server, or a busy one
_BUSY = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Server:
    """A server at `url` (with or without `/v1`) and the name under which it serves the model; `timeout` in seconds, of one answer.

    The environment's `OPENAI_API_KEY` is sent where there is one.
    """

    url: str
    name: str
    timeout: float = 600.0

    @property
    def base(self) -> str:
        """Address of the interface."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"

    def client(self, connections: int) -> httpx.Client:
        """A client of so many connections; it may be used by several threads."""
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.Client(base_url=self.base, headers=headers, limits=limits, timeout=self.timeout)

    def card(self) -> dict[str, Any]:
        """What the server says of the model; raises `ConfigError` where it does not answer, or serves others."""
        try:
            with self.client(1) as client:
                answer = client.get("/models")
                answer.raise_for_status()
                cards = {str(card["id"]): dict(card) for card in answer.json()["data"]}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            why = one_line(error) or type(error).__name__
            raise ConfigError(f"server {self.url}: does not tell its models ({why}); start it, or correct the address") from None
        if self.name not in cards:
            raise ConfigError(f"server {self.url}: serves {sorted(cards)}, not {self.name!r}; give --served-name")
        return cards[self.name]


class ServerGenerator:
    """See `Generator`. The server draws: a seed is sent with each request, which servers honour as they can."""

    def __init__(self, server: Server, tokenizer: Any, end: int, max_tokens: int, temperature: float, in_flight: int) -> None:
        self._server, self._tokenizer, self._end = server, tokenizer, end
        self._asked = {
            "model": server.name,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": 0,
            "stop_token_ids": [end],
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        self._client, self._threads = server.client(in_flight), ThreadPoolExecutor(in_flight)
        self.tokens_read = 0

    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """One answer per prompt."""
        seeds = [int(stream.integers(2**31)) for stream in streams]
        answers = list(self._threads.map(self._answer, prompts, seeds))
        # What the server had in its cache is not told; counted as if it had nothing.
        self.tokens_read += sum(map(len, prompts)) + sum(len(answer.ids) for answer in answers)
        return answers

    def _answer(self, prompt: list[int], seed: int) -> Generated:
        told = self._post({**self._asked, "prompt": prompt, "seed": seed})
        try:
            choice = told["choices"][0]
            text, ended = str(choice["text"]), choice["finish_reason"] == "stop"
            logprobs = choice.get("logprobs") or {}
            ids = choice.get("token_ids") or _ids_of(logprobs.get("tokens") or [])
            values = [np.nan if value is None else float(value) for value in logprobs.get("token_logprobs") or []]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"server {self._server.url}: its answer is no completion ({one_line(error)})") from None
        if not ids:
            ids, values = self._tokenizer(text, add_special_tokens=False)["input_ids"], []
        ids = [int(token) for token in ids]
        if ended and (not ids or ids[-1] != self._end):
            ids.append(self._end)
            values.append(np.nan)
        if not ids:
            raise ModelError(f"server {self._server.url}: gave an empty answer; look at its log")
        return Generated(ids, values if len(values) == len(ids) else [np.nan] * len(ids))

    def _post(self, body: dict[str, Any]) -> Any:
        why = ""
        for attempt in range(RETRIES):
            if attempt:
                time.sleep(0.5 * 2**attempt)
            try:
                answer = self._client.post("/completions", json=body)
            except httpx.TransportError as error:
                why = one_line(error) or type(error).__name__
                continue
            if answer.status_code not in _BUSY:
                if answer.is_success:
                    return answer.json()
                raise ModelError(f"server {self._server.url}: refuses the request ({_told(answer)})")
            why = _told(answer)
        raise ModelError(f"server {self._server.url}: does not answer ({why}); {RETRIES} times tried")


def _told(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {' '.join(answer.text.split())[:300]}"


def _ids_of(tokens: Sequence[str]) -> list[int]:
    """Token ids that stand in the place of tokens, as `token_id:N`; none where one does not."""
    numbers = [token.removeprefix("token_id:") for token in tokens if token.startswith("token_id:")]
    return [int(number) for number in numbers] if len(numbers) == len(tokens) else []
