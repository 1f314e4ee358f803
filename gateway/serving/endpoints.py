"""The ASGI door: HTTP in and out. The one place where a prediction waits in a Future."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.codecs.codec import Headers
from gateway.errors import BodyTooSlow, Draining, GatewayError, MethodNotAllowed, Refused
from gateway.serving import introspect
from gateway.serving.bodies import read_body
from gateway.serving.call import Call, OnReply
from gateway.serving.connections import Doors
from gateway.serving.doorway import Doorway
from gateway.serving.keygate import key_of
from gateway.serving.registry import Registry
from gateway.serving.replies import Block, Reply, error_headers, header_pairs, status_of
from gateway.serving.router import Router
from gateway.serving.target import PredictionPath
from gateway.serving.trace import METHOD_HEADER


class PredictionEndpoint:
    """One prediction path of a protocol, as a plain ASGI app: Starlette's Request costs more than a model."""

    def __init__(self, row: PredictionPath, doorway: Doorway) -> None:
        self._row = row
        self._codec = row.codec
        self._doorway = doorway
        self._admission = doorway.admission
        self._pipeline = doorway.pipeline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["method"] != "POST":
            headers[METHOD_HEADER] = scope["method"]
        target = self._doorway.target_of(self._row, scope["path_params"])
        try:
            if scope["method"] not in self._row.methods:
                raise MethodNotAllowed(scope["method"], ", ".join(self._row.methods))
            call = self._admission.open(target, headers)
        except GatewayError as error:
            await _send(send, self._doorway.turn_away(target, headers, error))
            return
        try:
            try:
                async with asyncio.timeout(max(0.0, call.deadline_s - self._admission.now_s())):
                    body = await read_body(
                        receive, self._admission.max_body_bytes, lambda size: self._admission.hold(call, size)
                    )
            except TimeoutError:
                raise BodyTooSlow("body: expected whole before the deadline, got a part of it") from None
            if body is None:
                return
            call.body = body
            reply = await self._predict(call, receive)
            if reply is not None:
                packing = self._doorway.packer.packing(reply, headers)
                await _send(send, reply if packing is None else await packing)
        except GatewayError as error:
            await _send(send, self._doorway.turn_away(call, headers, error))
        except asyncio.CancelledError:  # by the end of the worker alone; what it cancels ends with this answer
            await _send(send, self._doorway.turn_away(call, headers, Draining("the gateway is stopping")))
        finally:
            self._pipeline.abandon(call)  # nothing, if it has its answer
            self._admission.close(call)

    async def _predict(self, call: Call, receive: Receive) -> Reply | None:
        """The reply to a call; None if the client left before."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._doorway.begin(call, _resolve(future))
        while call.coding is not None and not future.done():  # noqa: ASYNC110  # a portion is inflated each turn
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # calls of one turn are read together at its end, and a body may shorten its deadline
        if future.done():
            return future.result()
        timer = loop.call_later(max(0.0, call.deadline_s - self._admission.now_s()), self._pipeline.expire, call)
        gone = loop.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
            return future.result() if future.done() else None
        finally:
            timer.cancel()
            gone.cancel()


def _resolve(future: asyncio.Future[Reply]) -> OnReply:
    def on_reply(call: Call, error: GatewayError | None, route: Block, content: Headers, body: bytes) -> None:
        if not future.done():
            future.set_result(Reply(error, call.request_id, call.prediction_id, route, content, body))

    return on_reply


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Send, reply: Reply) -> None:
    await send({"type": "http.response.start", "status": status_of(reply.error), "headers": header_pairs(reply)})
    await send({"type": "http.response.body", "body": reply.body})


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


class Questions:
    """GETs about health and models; each is short and never blocks.

    complaints: what is wrong with the gateway, though this worker may answer; called in a thread.
    """

    def __init__(
        self,
        router: Router,
        registry: Registry,
        is_ready: Callable[[], bool],
        doors: Doors,
        complaints: Callable[[], list[str]],
    ) -> None:
        self._router = router
        self._registry = registry
        self._is_warm = is_ready
        self._doors = doors
        self._complaints = complaints

    def routes(self) -> list[Route]:
        """The paths that they are asked by."""
        return [
            Route("/livez", self.live),
            Route("/readyz", self.ready),
            Route("/v2", self.server),
            Route("/v2/", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models", self.models),
            Route("/v2/models/{model}", self.model),
            Route("/v2/models/{model}/ready", self.model_ready),
            Route("/v2/models/{model}/versions/{version}", self.model),
            Route("/v2/models/{model}/versions/{version}/ready", self.model_ready),
        ]

    def is_ready(self) -> bool:
        """Whether this worker should get traffic."""
        return self._is_warm() and not self._doors.is_announced

    async def live(self, request: Request) -> Response:
        """The loop turns: that is all it says."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Whether this worker should get traffic."""
        is_draining, ready = self._doors.is_announced, self.is_ready()
        # tritonclient looks at the status only; the kserve client reads both keys.
        answer: dict[str, Any] = {"ready": ready, "live": True}
        told = await asyncio.to_thread(self._complaints)  # reads a file
        if is_draining:
            told.insert(0, "draining: the gateway is stopping")
        if told:
            answer["detail"] = told
        return _json(answer, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        return _json(introspect.server_metadata())

    async def models(self, request: Request) -> Response:
        """All models; with a key that is not good for all, those that it is good for."""
        key = key_of(request.scope)
        return _json(introspect.models(self._router, None if key is None else key.allows))

    async def model(self, request: Request) -> Response:
        return _json(introspect.model_metadata(self._find(request), self._registry))

    async def model_ready(self, request: Request) -> Response:
        model = request.path_params["model"]
        try:
            self._find(request)
        except Refused as error:
            return _json({"name": model, "ready": False, "error": str(error)}, 503)
        return _json({"name": model, "ready": True})

    def _find(self, request: Request) -> Any:
        model, version = request.path_params["model"], request.path_params.get("version")
        return self._router.default(model) if version is None else self._router.pinned(model, version)


async def on_gateway_error(request: Request, error: Exception) -> Response:
    """A question that has no answer, in the Open Inference Protocol's error shape."""
    assert isinstance(error, GatewayError)
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    response = _json({"error": str(error)}, status_of(error))
    response.headers.update(headers)
    return response


async def on_unknown_path(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, as JSON."""
    status = getattr(error, "status_code", 404)
    known = "/predict/{model}, /v2/models/{model}/infer, /v1/models/{model}:predict, /v1/feedback, /livez, /readyz"
    text = f"no such path: {request.url.path}; known: {known}" if status == 404 else f"{request.method} is not answered"
    response = _json({"error": text}, status)
    response.headers.update(getattr(error, "headers", None) or {})
    return response
