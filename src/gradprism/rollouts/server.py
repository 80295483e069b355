"""Answers of a server of OpenAI's completions interface, such as `vllm serve` or SGLang's, with many requests in flight.

Prompts go as token ids, so that the server's own chat template plays no part. Where it tells the answer's token ids (vLLM's
`return_token_ids`, or tokens as `token_id:N`) these are taken; else its text is played, and encoded anew for the model to read.
"""

import asyncio
import os
import random
import re
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import httpx
import msgspec
import numpy as np

from gradprism.rollouts.generator import Generated
from gradprism.runtime.errors import ConfigError, ModelError, one_line
from gradprism.runtime.files import parse_json
from gradprism.runtime.progress import say

TIMEOUT = 600.0  # seconds of one answer
TRIES = 5  # of a request that finds no server, or whose answer arrives broken: 15 seconds
BUSY_TRIES = 7  # of one that a server which is busy or still starting puts off: a minute, for a model to be loaded
_PAUSE = 1.0  # seconds before the second try; each further pause is twice as long
_SPREAD = 0.05  # pauses are longer by up to this share, so that what was refused at once does not come back at once
RETRY_AFTER = 60.0  # seconds that a busy server may ask for before the next try, at most
_SLOW = 60.0  # seconds without an answer after which it is said that one is waited for
_LONG = 5.0  # seconds of a try and the pause after it from which that is said
_APART = 10.0  # seconds between two lines that say what is waited for, at least
_WAKE = 0.2  # seconds after which an interrupt is noticed at the latest
_BUSY, _PUTS_OFF = {408, 429, 500, 502, 503, 504}, {429, 502, 503}
_chance = random.Random()
_said = -_APART  # when the last of these lines was
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Server:
    """A server at `url` (with or without `/v1`) and the name under which it serves the model; `timeout` in seconds, of one answer.

    The environment's `OPENAI_API_KEY` is sent where there is one.
    """

    url: str
    name: str
    timeout: float = TIMEOUT

    @property
    def base(self) -> str:
        """Address of the interface."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"

    def client(self, connections: int) -> httpx.AsyncClient:
        """A client of so many connections; raises `ConfigError` where address or key can be none."""
        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        try:
            return httpx.AsyncClient(base_url=self.base, headers=headers, limits=limits, timeout=self.timeout)
        except (httpx.InvalidURL, ValueError) as error:
            why = one_line(error)
            raise ConfigError(f"server {self.url}: cannot be asked ({why}); correct the address, or OPENAI_API_KEY") from None

    def card(self) -> dict[str, Any]:
        """What the server says of the model; raises `ConfigError` where it does not answer, or serves others."""
        try:
            with Connection(self, 1) as connection:
                [told] = connection.all([connection.ask("GET", "/models")])
            cards = {str(card["id"]): dict(card) for card in told["data"]}
        except ModelError as error:
            raise ConfigError(f"{error}; start it, or correct the address") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"server {self.url}: does not tell its models ({one_line(error)}); correct the address") from None
        if self.name not in cards:
            raise ConfigError(f"server {self.url}: serves {sorted(cards)}, not {self.name!r}; give --served-name")
        return cards[self.name]


class Connection:
    """Asks a server, inside a `with` block, for as much at a time as is to be `in_flight`.

    All requests live on one event loop, in a thread of its own: there, unlike in threads, what is on its way can be given up, and at the
    first failure or an interrupt it is. So an error does not wait for slow answers.
    """

    def __init__(self, server: Server, in_flight: int) -> None:
        self.server, self._client, self._loop = server, server.client(in_flight), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def all(self, asked: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
        """What all of these come to, in order, side by side; the first that fails ends the others."""
        future = asyncio.run_coroutine_threadsafe(_together(asked), self._loop)
        try:
            # The system may tell another thread of an interrupt, and this one learns of it when it wakes.
            while not wait([future], timeout=_WAKE).done:
                pass
            return future.result()
        finally:
            future.cancel()  # of an interrupt here the loop knows nothing

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer, tried several times; raises `ModelError` where it refuses, or gives none that can be read."""
        place, failures = f"server {self.server.url}", {TRIES: 0, BUSY_TRIES: 0}  # counted apart
        while True:
            clock = time.monotonic()
            slow = self._loop.call_later(_SLOW, _say, f"{place}: no answer for {_SLOW:g} s; waits up to {self.server.timeout:g} s")
            try:
                answer = await self._client.request(method, path, json=body)
                if answer.is_success:
                    return parse_json(answer.content)
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:  # of this side: another try would end the same
                raise ModelError(f"{place}: cannot be asked ({one_line(error)})") from None
            except (httpx.TransportError, httpx.DecodingError, ValueError) as error:
                broken = isinstance(error, httpx.DecodingError | ValueError)
                why = f"{'unreadable answer: ' if broken else ''}{one_line(error) or type(error).__name__}"
                if isinstance(error, httpx.ReadTimeout):
                    why = f"nothing in {self.server.timeout:g} s"
                tries, least = TRIES, 0.0
            else:
                if answer.status_code not in _BUSY:
                    raise ModelError(f"{place}: refuses the request ({_told(answer)})")
                why, least = _told(answer), _retry_after(answer)
                tries = BUSY_TRIES if answer.status_code in _PUTS_OFF else TRIES
            finally:
                slow.cancel()
            failures[tries] += 1
            if failures[tries] == tries:
                raise ModelError(f"{place}: does not answer ({why}); {sum(failures.values())} times tried")
            pause = max(_PAUSE * 2 ** (failures[tries] - 1), min(least, RETRY_AFTER, self.server.timeout))
            if time.monotonic() - clock + pause >= _LONG:
                _say(f"{place}: {why}; asks again in {pause:.0f} s, try {failures[tries] + 1} of {tries}")
            await asyncio.sleep(pause * (1 + _SPREAD * _chance.random()))

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._client.aclose()


class _Logprobs(msgspec.Struct):
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class _Choice(msgspec.Struct):
    text: str
    finish_reason: str | None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    """What is read of an answer. An id that is a truth value, or a text that is null, is refused."""

    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage | None = None


class ServerGenerator:
    """See `Generator`. The server draws: a seed is sent with each request, which servers honour as they can.

    Token ids from `vocabulary` on are of another model than the tokenizer's.
    """

    def __init__(
        self, connection: Connection, tokenizer: Any, end: int, max_tokens: int, temperature: float, vocabulary: int
    ) -> None:
        self._connection, self._tokenizer, self._end, self._vocabulary = connection, tokenizer, end, vocabulary
        self._asked = {
            "model": connection.server.name,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": 0,
            "stop_token_ids": [end],
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        special = sorted((str(token) for token in tokenizer.added_tokens_decoder.values() if token.special), key=len, reverse=True)
        ends = f"{re.escape(tokenizer.decode([end], skip_special_tokens=False))}$"
        self._unsaid = re.compile("|".join([*map(re.escape, special), ends]))
        self.tokens_read = 0

    def generate(
        self, slots: Sequence[int], prompts: Sequence[list[int]], streams: Sequence[np.random.Generator]
    ) -> list[Generated]:
        """One answer per prompt."""
        seeds = [int(stream.integers(2**31)) for stream in streams]
        answers = self._connection.all([self._answer(*each) for each in zip(prompts, seeds, strict=True)])
        # What the server had in its cache is not told; counted as if it had nothing.
        self.tokens_read += sum(map(len, prompts)) + sum(len(answer.ids) for answer in answers)
        return answers

    async def _answer(self, prompt: list[int], seed: int) -> Generated:
        told = await self._connection.ask("POST", "/completions", {**self._asked, "prompt": prompt, "seed": seed})
        place = f"server {self._connection.server.url}"
        try:
            completion = msgspec.convert(told, _Completion)
            choice = completion.choices[0]
            logprobs = choice.logprobs or _Logprobs()
            ids = choice.token_ids or _ids_of(logprobs.tokens or [])
        except ValueError as error:
            raise ModelError(f"{place}: its answer is no completion ({one_line(error)})") from None
        usage, most = completion.usage or _Usage(), self._asked["max_tokens"]
        if (given := len(ids) or usage.completion_tokens or 0) > most:  # a text alone does not tell
            raise ModelError(
                f"{place}: ignored max_tokens: asked for {most} tokens at most, it gave {given}; take one that keeps to it"
            )
        values, text = [np.nan if value is None else value for value in logprobs.token_logprobs or []], None
        if not ids:
            text = self._unsaid.sub("", choice.text).strip()
            ids, values = list(self._tokenizer(choice.text, add_special_tokens=False)["input_ids"]), []
        if strange := [token for token in ids if not 0 <= token < self._vocabulary]:
            raise ModelError(
                f"{place}: answers with token {strange[0]}, and --model has {self._vocabulary}; give the model that it serves"
            )
        if choice.finish_reason == "stop" and (not ids or ids[-1] != self._end):
            ids.append(self._end)
            values.append(np.nan)
        if not ids:
            raise ModelError(f"{place}: gave an empty answer; look at its log")
        return Generated(ids, values if len(values) == len(ids) else [np.nan] * len(ids), text)


async def _together(asked: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _say(line: str) -> None:
    """Says what is waited for, unless something was a moment ago: requests side by side wait for the same."""
    global _said
    if (now := time.monotonic()) - _said >= _APART:
        _said = now
        say(line)


def _told(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {' '.join(answer.text.split())[:300]}"


def _retry_after(answer: httpx.Response) -> float:
    """Seconds after which a busy server wants to be asked again; 0 where it names none, or a date."""
    told = answer.headers.get("Retry-After", "").strip()
    return float(told) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told, re.ASCII) else 0.0


def _ids_of(tokens: Sequence[str]) -> list[int]:
    """Token ids that stand in the place of tokens, as `token_id:N`; none where one does not."""
    numbers = [token.removeprefix("token_id:") for token in tokens if token.startswith("token_id:")]
    return [int(number) for number in numbers] if len(numbers) == len(tokens) else []
