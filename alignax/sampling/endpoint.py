"""JSON over HTTP to an outside engine: a time limit, retries with back-off, and errors that say what to do."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # an engine is on one's own network


class EngineError(OSError):
    """An outside engine that cannot be used as it is; the message names it, what was expected, and the fix."""


class NotThere(EngineError):
    """The engine answers, but has no such path."""


class Endpoint(NamedTuple):
    """Where an engine is, and how patiently it is asked."""

    url: str  # http://HOST:PORT
    key: str = ""  # sent as a bearer token, unless empty
    retries: int = 3  # of a request whose answer did not come, or was not whole
    wait_s: float = 1.0  # before the first retry; each further wait is twice as long

    def call(
        self, path: str, body: dict | None = None, *, timeout_s: float, read: Callable[[Any], Any] = lambda found: found
    ) -> Any:
        """What `read` makes of the answer, by POST if there is a body. A ValueError of it asks again, as a lost answer.

        Asking again is safe: nothing is changed by it, and a reply is as good as another. Raises EngineError.
        """
        until = time.monotonic() + timeout_s
        attempt = 0
        while True:
            try:
                return read(self._once(path, body, max(until - time.monotonic(), 0.01)))
            except EngineError:  # it has answered
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                wait_s = self.wait_s * 2**attempt
                if isinstance(_cause(error), TimeoutError) or time.monotonic() + wait_s > until:
                    raise EngineError(self._slow(path, timeout_s, error)) from error
                if attempt >= self.retries:
                    raise EngineError(self._gone(path, attempt + 1, error)) from error
                time.sleep(wait_s)
                attempt += 1

    def _once(self, path: str, body: dict | None, timeout_s: float) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        try:
            with _open(urllib.request.Request(self.url + path, data, headers), timeout=timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            said = error.read(4000).decode(errors="replace")
            words = f"HTTP {error.code}: {_message(said)}"
            if error.code >= 500 or error.code == 429:  # in trouble, or busy
                raise ConnectionError(words) from None
            absent = error.code in (404, 405) and "does not exist" not in said  # of a model it says that in 404 too
            raise (NotThere if absent else EngineError)(f"the engine {self.url}{path} refuses: {words}") from None
        return json.loads(text) if text.strip() else None

    def _slow(self, path: str, timeout_s: float, error: Exception) -> str:
        return (
            f"the engine {self.url}{path} gave no answer in {timeout_s:g} s ({_cause(error)!r}): expected all of a "
            "batch in that time. Raise engine_args.timeout_s, or see whether it is asleep, overloaded or hung"
        )

    def _gone(self, path: str, attempts: int, error: Exception) -> str:
        return (
            f"the engine {self.url}{path} cannot be used, {attempts} times over ({_cause(error)}): expected an "
            "OpenAI-compatible server there. Start one (docs/online.md), see in its log why it stopped, or correct the "
            "address"
        )


def _cause(error: BaseException) -> BaseException:
    """What went wrong beneath urllib's error."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else error


def _message(said: str) -> str:
    """The words of an error in JSON, or the beginning of what else it is."""
    try:
        found = json.loads(said)
        found = found.get("error", found)
        return str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        return said[:200]
