"""The Starlette applications: every documented endpoint that is not an inference, and the metrics.

``POST /infer`` and ``POST /pipelines/{name}`` never arrive here (``protocol`` answers them); their
paths are routed all the same so that another method gets a 405 that says what is allowed.
Source: reference page, Edge Deployment Endpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import ConflictError, EngineError, NotFoundError
from engine.refusal import error_body
from engine.rest.errors import error_reply
from engine.rest.logs import LogEndpoint
from engine.rest.metrics import CONTENT_TYPE, exposition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from engine.batching.line import Line
    from engine.request import InferRequest
    from engine.rest.service import Service

    Endpoint = Callable[[Request], Awaitable[Response]]

import orjson

__all__ = ["metrics_app", "rest_app"]

OPEN_PATHS = frozenset({"/healthz", "/livez"})  # probes carry no token


def rest_app(service: Service, partition: str) -> ASGIApp:
    """The application behind the HTTP port.

    Args:
        service: what every connection shares.
        partition: name of the edge, or of the host; cursors of the log go by it.

    Returns:
        An ASGI application without lifespan.
    """
    plane = service.plane
    logs = LogEndpoint(plane, partition)

    async def pipelines(_request: Request) -> Response:
        return _json({"pipelines": plane.pipelines()})

    async def models(_request: Request) -> Response:
        return _json({"models": plane.models()})

    async def healthz(_request: Request) -> Response:
        return _json(plane.health(), 200 if plane.is_ready else 503)

    async def livez(_request: Request) -> Response:
        return _json({"status": "Alive"})

    async def openai(_request: Request) -> Response:
        raise ConflictError(
            "this pipeline is not a language model: its inference endpoints are POST /infer and "
            "POST /pipelines/{name}, without OpenAI extensions"
        )

    routes = [
        Route("/pipelines", pipelines, methods=["GET"]),
        Route("/models", models, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
        Route("/livez", livez, methods=["GET"]),
        Route("/logs", logs.rows, methods=["POST"]),
        Route("/logs/failures", logs.failures, methods=["POST"]),
        Route("/infer", _only_for_its_method, methods=["POST"]),
        Route("/pipelines/{name}", _only_for_its_method, methods=["POST"]),
        Route("/infer/openai/v1/{rest:path}", openai, methods=["POST"]),
        Route("/pipelines/{name}/openai/v1/{rest:path}", openai, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            EngineError: _engine_error,
            HTTPException: _teller(
                "POST /infer, POST /pipelines/{name}, GET /pipelines, GET /models, POST /logs, "
                "POST /logs/failures, GET /healthz, GET /livez"
            ),
            ClientDisconnect: _gone,
            Exception: _engine_error,
        },
    )
    app.router.redirect_slashes = False
    return app if service.tokens is None else _Authorized(app, service)


def metrics_app(service: Service, line: Line[InferRequest], deploy_id: str) -> ASGIApp:
    """The application behind the metrics port: ``GET /metrics``."""

    async def metrics(_request: Request) -> Response:
        text = exposition(service.plane, line, service.metrics, deploy_id)
        return Response(text, media_type=CONTENT_TYPE)

    return Starlette(
        routes=[Route("/metrics", metrics, methods=["GET"])],
        exception_handlers={HTTPException: _teller("GET /metrics"), Exception: _engine_error},
    )


class _Authorized:
    """Lets a request through that carries an accepted token."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tokens = self._service.tokens
        if tokens is not None and scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                tokens.check(dict(scope["headers"]).get(b"authorization", b""))
            except EngineError as error:
                await _response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _only_for_its_method(_request: Request) -> Response:
    raise NotFoundError("this path is POST only")  # the protocol answers POST


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response()  # which nobody gets: the client left before its request was whole


async def _engine_error(_request: Request, error: Exception) -> Response:
    return _response(error)


def _teller(served: str) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Starlette's own 404 and 405 in the engine's words, for a listener that serves these."""

    async def tell(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        allowed = (headers or {}).get("Allow", "")
        text = f"{request.method} is not allowed on {request.url.path[:200]}: use {allowed}"
        if status == 404:
            text = f"nothing is served at {request.url.path[:200]}: there are {served}"
        return Response(
            error_body(status, text), status, headers=headers, media_type="application/json"
        )

    return tell


def _response(error: Exception) -> Response:
    reply = error_reply(error)
    response = Response(bytes(reply.body), reply.status, media_type=reply.content_type.decode())
    for name, value in reply.headers:
        response.headers[name.decode()] = value.decode()
    return response


def _json(content: dict[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
