"""Questions to an OpenAI-compatible endpoint, with retries, a deadline, and replies cached on disk.

A failure tells whether the endpoint failed (`down`) or refused one question. The API key is read from an
environment variable when it is needed, and is never part of a message, a file or a cache key; of the URL,
which may hold one too, messages name only the host. Left out: streaming, images, tools.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.base.files import cache_home, write_text
from posttrain.base.printable import server_of
from posttrain.errors import RequestError, WorkError

AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses that may be temporary: the question is sent again."""
REFUSED = {400, 413, 422}
"""HTTP statuses that may be caused by the question: too long, filtered, not readable."""
LONGEST_PAUSE_S = 20.0
LONGEST_REPLY = 2**20
"""Bytes of a reply; a longer one is a failure."""


class Unanswered(Exception):
    """There is no reply. `kind`: `down` (the endpoint failed), `deadline`, or `refused` (by the endpoint)."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


def cache_folder(chosen: str | None) -> Path | None:
    """`chosen`, else `judge` in $POSTTRAIN_CACHE or ~/.cache/posttrain; None if it is ""."""
    if chosen == "":
        return None
    return Path(chosen).expanduser() if chosen else cache_home() / "judge"


def key_of(settings: dict[str, Any]) -> str:
    """The name under which a reply is cached."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode("ascii")).hexdigest()


@dataclass
class Endpoint:
    """One `/chat/completions` endpoint. Safe to use from several threads."""

    url: str
    model: str
    key_env: str | None = None
    max_tokens: int = 1024
    retries: int = 4
    timeout_s: float = 60.0
    until: float = float("inf")
    """The value of `time.monotonic()` after which no question may be pending."""
    folder: Path | None = None
    pause_s: float = 0.5
    requests: int = 0
    _client: Any = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __enter__(self) -> Endpoint:
        import httpx2

        headers = {"Content-Type": "application/json"}
        if self.key_env:
            key = os.environ.get(self.key_env, "")
            if not key:
                raise RequestError(
                    f"reward 'judge': the environment variable {self.key_env} is empty; set it to the API key"
                )
            if not key.isascii() or not key.isprintable():
                raise RequestError(
                    f"reward 'judge': the environment variable {self.key_env} does not contain an API key"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx2.Client(headers=headers, timeout=self.timeout_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, messages: list[dict[str, str]], keep: str | None, good: Callable[[str], bool]) -> str:
        """The reply to `messages`; if it is not `good`, the question is sent once more.

        `keep` is the name of the question in the cache (None: not cached); only good replies are cached.

        Raises:
            Unanswered: there is no reply.
        """
        path = self.folder / keep[:2] / f"{keep}.json" if self.folder and keep else None
        if path is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                kept = json.loads(path.read_text(encoding="utf-8"))["reply"]
                if isinstance(kept, str) and good(kept):
                    return kept
        last: Unanswered | None = None
        bad: str | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                self._pause(attempt, last)
            try:
                reply = self._once(messages)
            except Unanswered as failure:
                if failure.kind != "again":
                    raise
                last = failure
                continue
            if good(reply):
                if path is not None:
                    with contextlib.suppress(
                        WorkError
                    ):  # on a full disk the question is sent again next time
                        write_text(path, json.dumps({"reply": reply}))
                return reply
            if bad is not None:
                return reply
            bad, last = reply, None
        if bad is not None:
            return bad
        raise Unanswered("down", f"{last} ({self.retries + 1} tries)")

    def _pause(self, attempt: int, last: Unanswered | None) -> None:
        pause = min(LONGEST_PAUSE_S, self.pause_s * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        pause = max(pause, getattr(last, "after_s", 0.0))
        if time.monotonic() + pause >= self.until:
            raise Unanswered("deadline", f"no reply before the deadline; last: {last}")
        time.sleep(pause)

    def _once(self, messages: list[dict[str, str]]) -> str:
        import httpx2

        left = self.until - time.monotonic()
        if left <= 0:
            raise Unanswered("deadline", "no reply before the deadline")
        body = {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": self.max_tokens}
        with self._lock:
            self.requests += 1
        try:
            status, headers, data = self._post(json.dumps(body).encode("ascii"), min(self.timeout_s, left))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise Unanswered("again", f"{server_of(self.url)}: {type(error).__name__}") from None
        if status in AGAIN:
            failure = Unanswered("again", f"{server_of(self.url)}: HTTP {status}")
            with contextlib.suppress(ValueError):
                failure.after_s = min(float(headers.get("retry-after", 0)), LONGEST_PAUSE_S)
            raise failure
        if status != 200:
            raise Unanswered(
                "refused" if status in REFUSED else "down", f"{server_of(self.url)}: HTTP {status}"
            )
        try:
            return str(json.loads(data)["choices"][0]["message"]["content"] or "")
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Unanswered("again", f"{server_of(self.url)}: the reply is not a chat completion") from None

    def _post(self, body: bytes, limit_s: float) -> tuple[int, Any, bytes]:
        """Status, headers and body, within `limit_s` seconds in all even if the server sends byte by byte."""
        import httpx2

        until, data = time.monotonic() + limit_s, b""
        address = self.url.rstrip("/")
        if not address.endswith("/chat/completions"):
            address += "/chat/completions"
        with self._client.stream("POST", address, content=body, timeout=limit_s) as answer:
            for piece in answer.iter_bytes():
                data += piece
                if time.monotonic() > until or len(data) > LONGEST_REPLY:
                    raise httpx2.ReadTimeout("too slow or too long")
            return answer.status_code, answer.headers, data
