"""The HTTP side of the applications, without Ray: what a replica serves, and what any ASGI server could."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field, ValidationError, create_model
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from crmray import __version__
from crmray.keys import KeyFile
from crmray.tasks.contract import EntityRequest, Task
from serve.answers import Answers
from serve.errors import RESPONSES, ErrorAnswer, Refused, invalid
from serve.gate import Gate
from serve.options import RootOptions, TaskOptions

DOCS, DOCS_FILES = "/docs", "/docs/files"
OPEN_PATHS = frozenset(
    {
        "/", "/healthz", "/readyz", "/openapi.json", DOCS,
        *(f"{DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")),
    }
)  # fmt: skip
"""of the root: no key is asked for, and nothing about customers is said"""


def task_app(
    task: Task,
    answers: Answers,
    *,
    options: TaskOptions,
    keys: KeyFile | None,
    observe: Callable[[int, float], None] | None = None,
) -> FastAPI:
    """The application of one task: POST to its root, or GET with a known id as the rest of the path.

    Bodies are parsed by pydantic straight from their bytes.
    """

    async def predict(request: Request) -> Response:
        return await answered(parse(task.Request, await request.body()))

    async def look_up(request: Request) -> Response:
        if not request.path_params["id"]:
            raise HTTPException(405)
        return await answered(of_query(task.Request, request.path_params["id"], request.query_params.multi_items()))

    async def answered(asked: EntityRequest) -> Response:
        return Response(await answers.answer(asked), media_type="application/json")

    app = _app(Middleware(Gate, options=options, keys=keys, observe=observe))
    app.add_route("/", predict, methods=["POST"])
    app.add_route("/{id:path}", look_up, methods=["GET"])
    return app


def parse(model: type[EntityRequest], body: bytes) -> EntityRequest:
    """The body as the task's Request; 422 names the field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error, model) from None


def of_query(model: type[EntityRequest], id_: str, query: list[tuple[str, str]]) -> EntityRequest:
    """A GET as the task's Request: the id of the path, options from the query. 422 names the field."""
    repeated = [name for name, _ in query if name in model.SUBJECTS]
    if repeated:
        raise Refused(422, "invalid_field", f"{repeated[0]}: the path names the id already", field=repeated[0])
    try:
        return model.model_validate({**dict(query), "id": id_})
    except ValidationError as error:
        raise invalid(error, model) from None


def root_app(
    tasks: Mapping[str, Task],
    *,
    options: RootOptions,
    keys: KeyFile | None,
    models: Callable[[], list[dict[str, Any]]],
    missing: Callable[[], list[str]],
    observe: Callable[[int, float], None] | None = None,
) -> FastAPI:
    """The application at /: models, health, readiness, one OpenAPI document for all of them, and a page to try it on,
    whose scripts come from here as well: no browser needs another network.

    tasks: those that are served. models: what GET /v1/models lists. missing: why the service is not ready, one sentence
    each; empty when it is.
    """
    gate = Middleware(Gate, options=options, keys=keys, open_paths=OPEN_PATHS, observe=observe)
    app = _app(
        gate, make=FastAPIOffline, title="crmray", version=__version__, openapi_url="/openapi.json", docs_url=DOCS,
        static_url=DOCS_FILES, swagger_ui_parameters={"validatorUrl": None},
    )  # fmt: skip

    keyed = [Security(HTTPBearer(auto_error=False))] if keys is not None else []  # for the document: the gate checks

    @app.get("/", tags=["models"])
    async def index() -> dict[str, Any]:
        """Where what is: the pages, and the address of each task that is served."""
        pages = {"docs": DOCS, "openapi": "/openapi.json", "health": "/healthz", "ready": "/readyz"}
        routes = {name: task.ROUTE for name, task in tasks.items()}
        return {"crmray": __version__, **pages, "models": "/v1/models", "tasks": routes}

    @app.get("/v1/models", response_model=Models, responses=_errors(401), tags=["models"], dependencies=keyed)
    async def list_models() -> dict[str, Any]:
        """The champion of every task, and where it answers."""
        return {"models": await asyncio.to_thread(models)}

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"model": ErrorAnswer}}, tags=["health"])
    async def readyz() -> dict[str, str]:
        """Every task that the org file asks for has a champion and a running application."""
        reasons = await asyncio.to_thread(missing)
        if reasons:
            raise Refused(503, "not_ready", "; ".join(reasons))
        return {"status": "ready"}

    for task in tasks.values():
        _document(app, task, keyed)

    async def wrong_body(request: Request, error: Exception) -> Response:
        """Of the routes here only those that are not deployed have a body, and what is in it does not matter."""
        refused = _absent(request.url.path)
        return Response(refused.body(), refused.status, media_type="application/json")

    app.add_exception_handler(RequestValidationError, wrong_body)
    return app


def _document(app: FastAPI, task: Task, keyed: Sequence[Any]) -> None:
    """The task's two routes in the document; they answer only while its own application is not deployed."""
    shared: dict[str, Any] = {"response_model": answer_model(task), "tags": [task.NAME], "dependencies": keyed}
    app.add_api_route(
        task.ROUTE,
        _not_deployed(task),
        methods=["POST"],
        responses=_errors(401, 403, 404, 413, 422, 429, 503, 504),
        summary=f"Predict {task.NAME}",
        **shared,
    )
    app.add_api_route(
        f"{task.ROUTE}/{{id}}",
        _not_looked_up(task),
        methods=["GET"],
        responses=_errors(401, 403, 404, 422, 429, 503, 504),
        summary=f"Predict {task.NAME} of one known {task.ENTITY}",
        **shared,
    )


class ModelEntry(BaseModel):
    """One task in GET /v1/models."""

    task: str
    route: str
    version: str | None = Field(description="null: nothing is published yet")
    candidate: str | None = None
    metric: str | None = None
    published_at: datetime | None = None
    as_of: datetime | None = Field(None, description="date of the rows that answer for known ids")
    data_age_days: float | None = None


class Models(BaseModel):
    """Answer of GET /v1/models."""

    models: list[ModelEntry]


def answer_model(task: Task) -> type[BaseModel]:
    """The task's Response with what every answer carries."""
    fields: dict[str, Any] = {
        "version": (str, Field(description="version of the model that answered")),
        "as_of": (datetime | None, Field(description="the date up to which the model looked; null without time")),
        "data_age_days": (float | None, Field(description="days from the date of the data to this moment")),
        "unknown": (list[str], Field(description="of the ids asked for, those that are not in the data")),
        "withheld": (list[str], Field(description="of the ids asked for, those that withdrew their consent")),
        "unlisted": (
            list[str],
            Field(
                description="ids of products and campaigns in rows that were sent which their tables do not list; "
                "such rows count all the same"
            ),
        ),
    }
    return create_model(f"{task.NAME.title()}Answer", __base__=task.Response, **fields)


def _not_deployed(task: Task) -> Callable[..., Awaitable[Response]]:
    """Where a task's own application is deployed, Serve never sends its route here; this documents it."""

    async def predict(request: Any) -> Response:
        raise _absent(task.ROUTE)

    predict.__annotations__["request"] = task.Request
    predict.__doc__ = task.Request.__doc__
    return predict


def _not_looked_up(task: Task) -> Callable[..., Awaitable[Response]]:
    """As _not_deployed; options go into the query."""

    async def look_up(id: str) -> Response:
        raise _absent(task.ROUTE)

    return look_up


def _absent(route: str) -> Refused:
    return Refused(503, "not_deployed", f"the application of {route} is not deployed; run `crmray deploy`")


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: RESPONSES[status] for status in statuses}


def _app(gate: Middleware, make: Callable[..., FastAPI] = FastAPI, **options: Any) -> FastAPI:
    """A FastAPI behind the gate whose errors are all JSON of one form."""
    options = {"openapi_url": None, "docs_url": None, "redoc_url": None, **options}
    app = make(middleware=[gate], redirect_slashes=False, **options)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return Response(error.body(), error.status, error.headers, "application/json")

    async def wrong_address(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        hint = "; /docs lists the addresses that are served" if error.status_code in (404, 405) else ""
        message = f"{request.method} {request.url.path}: {error.detail}{hint}"
        body = {"error": {"code": code, "message": message, "field": None}}
        return JSONResponse(body, error.status_code, error.headers)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, wrong_address)
    return app
