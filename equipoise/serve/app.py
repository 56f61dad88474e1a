"""The server: the Open Inference Protocol over HTTP, in front of an `Engine`."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from equipoise.batch import ONE
from equipoise.errors import InputError
from equipoise.serve.engine import Answer, Engine, Turned, Unknown
from equipoise.serve.protocol import HEADER, OUTPUT, Asked, finite, head_length, read, write

ASKED = ["GET", "HEAD"]
"""How health is asked for: probes and balancers often want no body."""
GONE = 499
"""What is counted, as nginx does, where the client broke off; it hears nothing of it."""
INFER = re.compile(r"/v2/models/(?P<model>[^/]+)(/versions/(?P<rung>[^/]+))?/infer")
TIMEOUT = "timeout"
"""The request's own parameter for the time it has, in microseconds, as Triton names it."""


@dataclass(frozen=True)
class Limits:
    """What one client may ask.

    Attributes:
        body_bytes: Of a request's body.
        rows: Samples of a request.
        body_s: Seconds in which a body must have come.
        drain_s: Seconds that what waits is given at the end.
    """

    body_bytes: int = 32 * 2**20
    rows: int = 256
    body_s: float = 10.0
    drain_s: float = 20.0


@dataclass
class Figures:
    """What is counted, for Prometheus."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own: dict[str, Any] = {"registry": self.registry, "namespace": "equipoise"}
        bounds = tuple(1e-4 * 2**step for step in range(18))
        self.requests = Counter("requests", "Requests by how they ended", ("status",), **own)
        self.answers = Counter("answers", "Requests answered, by rung", ("rung",), **own)
        self.late = Counter("late", "Requests answered after their deadline", **own)
        self.switches = Counter("switches", "Changes of the rung that answers", ("rung",), **own)
        self.seconds = Histogram("request_seconds", "From arrival to answer", buckets=bounds, **own)
        self.drop = Counter("drop_points", "Certified drops of the answers given, added up", **own)
        self.waiting = Gauge("waiting_rows", "Rows that wait", **own)

    def counted(self, response: Response) -> Response:
        """Count a response, and return it."""
        self.requests.labels(str(response.status_code)).inc()
        return response

    def answered(self, answer: Answer) -> None:
        """Count an answer."""
        self.answers.labels(answer.rung.name).inc()
        self.late.inc(int(answer.late))
        self.seconds.observe(answer.waited_s + answer.ran_s)
        self.drop.inc(max(0.0, answer.rung.drop.get()))


def application(
    engine: Engine, *, name: str, limits: Limits | None = None, token: str = "", ready: Callable[[], bool] = lambda: True
) -> FastAPI:
    """Return the application of an engine.

    Args:
        name: The model's, in addresses.
        token: What clients show as ``Authorization: Bearer ...``; empty asks for none. Health is told to anyone.
        ready: Whether new requests are welcome; false while the process is about to stop.
    """
    bounds, figures = limits or Limits(), Figures()
    engine.switched = lambda rung, why: figures.switches.labels(rung.name).inc()

    @asynccontextmanager
    async def lives(_app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await engine.drain(bounds.drain_s)

    app = FastAPI(title="equipoise", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lives)

    @app.exception_handler(HTTPException)
    async def no_such(_request: Request, error: HTTPException) -> Response:
        return _told(error.status_code, error.detail, error.headers)

    @app.api_route("/v2/health/live", methods=ASKED)
    async def live() -> dict[str, bool]:
        return {"live": True}

    def told_ready(rung: str | None = None) -> Response:
        able = [engine.ladder.rungs[place].name for place in engine.dispatcher.able]
        is_so = ready() and not engine.draining and (bool(able) if rung is None else rung in able)
        return JSONResponse({"ready": is_so}, 200 if is_so else 503)

    @app.api_route("/v2/health/ready", methods=ASKED)
    async def is_ready() -> Response:
        return told_ready()

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "equipoise", "version": version("equipoise"), "extensions": ["binary_tensor_data"]}

    def unknown(request: Request) -> Response | None:
        """Return what an address is told that names another model, or a version that is no rung; None where it is right."""
        model, rung = request.path_params["model"], request.path_params.get("rung")
        if model != name:
            return _told(404, f"model {model[:100]!r} is not served here; it is {name!r}")
        return None if rung is None or rung in engine.ladder.places else _no_version(rung, engine)

    @app.get("/v2/models/{model}")
    @app.get("/v2/models/{model}/versions/{rung}")
    async def metadata(request: Request) -> Response:
        asked = [{"name": key, **each.described} for key, each in engine.ladder.takes.items()]
        rungs = [rung.name for rung in engine.ladder.rungs]
        out = {"name": OUTPUT, "datatype": "FP32", "shape": [*engine.ladder.gives]}
        told = {"name": name, "versions": rungs, "platform": "equipoise", "inputs": asked, "outputs": [out]}
        return unknown(request) or JSONResponse(told)

    @app.api_route("/v2/models/{model}/ready", methods=ASKED)
    @app.api_route("/v2/models/{model}/versions/{rung}/ready", methods=ASKED)
    async def model_ready(request: Request) -> Response:
        return unknown(request) or told_ready(request.path_params.get("rung"))

    async def infer(request: Request) -> Response:
        if wrong := unknown(request):
            return figures.counted(wrong)
        rung = request.path_params.get("rung")
        try:
            body, length = _Body(request, bounds), head_length(request.headers.get(HEADER))
            asked = read(await body.take(length), length, engine.ladder.takes, most_rows=bounds.rows)
            admitted = engine.admit(asked.rows, within_s=_within(asked), rung=rung)
            try:
                found = await engine.run(admitted, _whole(asked.inputs(await body.take())))
            finally:
                engine.leave(admitted)
        except InputError as error:
            return figures.counted(_told(400, str(error)))
        except Unknown as error:
            return figures.counted(_no_version(str(error), engine))
        except _TooLarge as error:
            return figures.counted(_told(413, str(error), {"Connection": "close"}))
        except TimeoutError:
            return figures.counted(_told(408, f"the body took more than {bounds.body_s:g} s", {"Connection": "close"}))
        except ClientDisconnect:
            return figures.counted(_told(GONE, "the client broke off"))
        except Turned as turned:
            status = 503 if engine.draining or not engine.dispatcher.able else 429
            return figures.counted(_told(status, str(turned), {"Retry-After": str(max(1, round(turned.after_s)))}))
        except Exception as error:  # noqa: BLE001 - the edge: a client gets a sentence, and the server goes on
            return figures.counted(_told(500, f"{type(error).__name__}: {str(error)[:200]}"))
        if not finite(found.outputs):  # JSON has no word for it, and nobody can use it
            return figures.counted(
                _told(500, f"the answer of {found.rung.name} to it is not finite; are its inputs too large?")
            )
        figures.answered(found)
        answer = figures.counted(_answer(asked, found, name))
        engine.sent(found)
        return answer

    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{rung}/infer"):
        app.add_route(path, infer, methods=["POST"])
    app.add_middleware(_Direct, infer=infer)
    if token:
        app.add_middleware(_Known, token=token)  # the last one is the first to be asked

    @app.get("/metrics")
    async def metrics() -> Response:
        figures.waiting.set(engine.waiting)
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class _Direct:
    """Hands inference to its function without the layers of the framework in between, which cost a request as much again."""

    def __init__(self, app: ASGIApp, *, infer: Callable[[Request], Awaitable[Response]]) -> None:
        self._app, self._infer = app, infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path")
        found = INFER.fullmatch(scope["path"]) if plain else None
        if found is None:
            await self._app(scope, receive, send)
        else:
            scope["path_params"] = {name: value for name, value in found.groupdict().items() if value is not None}
            await (await self._infer(Request(scope, receive)))(scope, receive, send)


class _Known:
    """Lets those pass who show the token, and anyone to what is told of the health."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "http" and "/health/" not in scope["path"]
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        scheme, _, shown = given.partition(b" ")
        if asks and not (hmac.compare_digest(shown.strip(), self._token) and scheme.lower() == b"bearer"):
            refused = _told(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
            await refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _TooLarge(Exception):
    """A body over the limit."""


class _Body:
    """The body of a request, read as far as it is asked for, and refused as soon as it is too long or too slow."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self._limits, self._stream, self._parts, self._length = limits, request.stream(), list[bytes](), 0
        self._until = asyncio.get_running_loop().time() + limits.body_s
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated[:20]) > limits.body_bytes:
            raise _TooLarge(f"a body has at most {limits.body_bytes} bytes; this one has {stated[:20]}")

    async def take(self, count: int | None = None) -> bytes:
        """Return the next so many bytes, fewer where there are no more; None: all that is left."""
        held = sum(map(len, self._parts))
        async with asyncio.timeout_at(self._until):
            while count is None or held < count:
                if (part := await anext(self._stream, None)) is None:
                    break
                held, self._length = held + len(part), self._length + len(part)
                if self._length > self._limits.body_bytes:
                    raise _TooLarge(f"a body has at most {self._limits.body_bytes} bytes")
                self._parts.append(part)
        whole = b"".join(self._parts)
        taken = whole[:count]
        self._parts = [whole[len(taken) :]]
        return taken


def _whole(inputs: dict[str, Any]) -> Any:
    return inputs[ONE] if inputs.keys() == {ONE} else inputs


def _within(asked: Asked) -> float | None:
    """Return the seconds that a request gives itself."""
    given = asked.parameters.get(TIMEOUT)
    if given is None:
        return None
    if type(given) not in (int, float) or not 0 < given < 1e12:
        raise InputError(f"parameters.{TIMEOUT} must be microseconds above 0; got {str(given)[:50]!r}. Leave it out.")
    return float(given) / 1e6


def _answer(asked: Asked, found: Answer, model: str) -> Response:
    rung = found.rung
    told = {
        "rung": rung.name,
        "quality": rung.quality.get(),
        "drop": rung.drop.get(),
        **({} if rung.drop.high is None else {"drop_at_most": rung.drop.high}),
        "queue_ms": 1e3 * found.waited_s,
        "late": found.late,
    }
    body, headers = write(asked, {OUTPUT: found.outputs}, {"model_name": model, "model_version": rung.name, "parameters": told})
    return Response(body, headers={**headers, "X-Equipoise-Rung": rung.name})


def _told(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers=dict(headers or {}))


def _no_version(rung: str, engine: Engine) -> JSONResponse:
    return _told(404, f"version {rung[:100]!r} is not served here; there are {', '.join(engine.ladder.places)}")
