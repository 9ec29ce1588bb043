"""The endpoints: OpenAI's completions and chat over the slots, as a Starlette application."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from alignax.sampling.service import Piece, Service
from alignax.serving import fields
from alignax.serving.answers import Form, Vocabulary, form
from alignax.serving.fields import Bad, Wanted
from alignax.stages.playground import Policy

GONE = 499  # the client has left: nobody reads this answer


def app(service: Service, policy: Policy, name: str) -> Starlette:
    """The application of a policy that is served under a name."""
    vocabulary, began = Vocabulary(policy.tokenizer), int(time.time())

    def answering(chat: bool, parse: Callable[[Any, Policy, str, int], Wanted]):
        async def answer(request: Request) -> Response:
            wanted = parse(await json_of(request), policy, name, service.length)
            return await answered(request, service, form(chat, name, vocabulary, wanted))

        return answer

    async def models(request: Request) -> Response:
        one = {"id": name, "object": "model", "created": began, "owned_by": "alignax", "max_model_len": service.length}
        return JSONResponse({"object": "list", "data": [one]})

    async def health(request: Request) -> Response:
        if service.closed:
            raise Bad(service.failure or "the service is closed", status=503)
        return JSONResponse({"status": "ok"})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Bad)
        return JSONResponse(error.body(), error.status)

    async def no_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = ", ".join(f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in routes)
        message = f"{request.method} {request.url.path}: expected one of {known}"
        return JSONResponse(Bad(message, status=error.status_code).body(), error.status_code)

    routes = [
        Route("/v1/completions", answering(False, fields.completion), methods=["POST"]),
        Route("/v1/chat/completions", answering(True, fields.chat), methods=["POST"]),
        Route("/v1/models", models),
        Route("/health", health),
    ]
    return Starlette(routes=routes, exception_handlers={Bad: refused, HTTPException: no_route})


async def json_of(request: Request) -> Any:
    """The body of a request. Raises Bad where it is no JSON."""
    try:
        return json.loads(await request.body())
    except ValueError as error:  # of JSON, and of what is no UTF-8
        raise Bad(f"the body is no JSON ({error}): expected an object, with Content-Type: application/json") from error


async def answered(request: Request, service: Service, form: Form) -> Response:
    """The answer to a request that was understood, whole or in pieces."""
    if service.closed:
        raise Bad(service.failure or "the service is closed", status=503)
    if form.wanted.stream:
        return StreamingResponse(events(service, form), media_type="text/event-stream")
    work, left = asyncio.create_task(collected(service, form)), asyncio.create_task(gone(request))
    await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    if not work.done():
        work.cancel()
        return Response(status_code=GONE)
    return JSONResponse(form.whole(work.result()))


async def gone(request: Request) -> None:
    """Waits until the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def heard(service: Service, wanted: Wanted) -> AsyncIterator[tuple[int, Piece]]:
    """(index of the choice, its next piece), until all are over. Replies that nobody waits for are abandoned."""
    loop, found = asyncio.get_running_loop(), asyncio.Queue()

    def put(index: int) -> Callable[[Piece], None]:
        def hand(piece: Piece) -> None:  # called by the worker's thread
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all who waited in it
                loop.call_soon_threadsafe(found.put_nowait, (index, piece))

        return hand

    writing = []
    try:
        for index, ask in enumerate(wanted.asks):
            writing.append(service.submit(ask, put(index)))
        left = len(writing)
        while left:
            index, piece = await found.get()
            if piece.reason == "error":
                raise Bad(piece.stop, status=500)
            left -= bool(piece.reason)
            yield index, piece
    except RuntimeError as error:  # the worker has failed before it had the request
        raise Bad(str(error), status=500) from error
    finally:
        for one in writing:
            one.abandon()


async def collected(service: Service, form: Form) -> list[list[Piece]]:
    """The pieces of every reply."""
    found: list[list[Piece]] = [[] for _ in form.wanted.asks]
    async for index, piece in heard(service, form.wanted):
        found[index].append(piece)
    return found


async def events(service: Service, form: Form) -> AsyncIterator[str]:
    """A stream of server-sent events: pieces of all replies as they come, the usage if it is wanted, [DONE]."""
    event: Callable[[dict], str] = lambda body: f"data: {json.dumps(body)}\n\n"  # noqa: E731
    fresh, written, head = set(range(len(form.wanted.asks))), 0, form.head(True)
    try:
        async for index, piece in heard(service, form.wanted):
            written += len(piece.tokens)
            choice = form.choice(index, [piece], streamed=True, first=index in fresh)
            yield event(head | {"choices": [choice]} | (form.asked() if index in fresh else {}))
            fresh.discard(index)
    except Bad as error:
        yield event(error.body())
    else:
        if form.wanted.usage:
            yield event(head | {"choices": [], "usage": form.usage(written)})
    yield "data: [DONE]\n\n"
