"""The API: six endpoints under `/api/resilience`."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from examples.demo_api.answers import REFUSALS, BadRequestError, of_limit, problem, refused
from examples.demo_api.payments import SIMULATIONS, Order, RejectedError, banks, greet, pay, readiness, service
from shared_resilience import HealthCheckType

RESETS = {"rate_limiters", "circuit_breakers"}
"""Kinds of components that have something to reset."""


def client_of(request: Request) -> str:
    """Whose limit it is: stands for whom an API would authenticate."""
    return request.headers.get("X-Client") or (request.client.host if request.client else "nobody")


async def left_for(client: str, name: str) -> dict[str, str]:
    """The RateLimit headers, as of now."""
    return of_limit(await service.get_or_create_rate_limiter(name).peek(client))


async def order_in(request: Request) -> Order:
    """The order that the client has sent. Raises `BadRequestError`."""
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise BadRequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError(422, "the body must be an object")
    order_id, amount, simulate = body.get("order_id"), body.get("amount"), body.get("simulate", "ok")
    if not isinstance(order_id, str) or not order_id:
        raise BadRequestError(422, "order_id must be a text")
    if not isinstance(amount, int) or isinstance(amount, bool) or amount < 1:
        raise BadRequestError(422, "amount must be an integer from 1, in cents")
    if simulate not in SIMULATIONS:
        raise BadRequestError(422, f"simulate must be one of {', '.join(SIMULATIONS)}")
    return Order(order_id, amount, simulate)


async def protected_endpoint(request: Request) -> JSONResponse:
    """Pays an order, behind all that there is."""
    key = request.headers.get("Idempotency-Key")
    if not key:
        raise BadRequestError(
            400, "the header Idempotency-Key is missing: it names this payment, also when it is repeated"
        )
    order, client = await order_in(request), client_of(request)
    try:
        result = await banks.answer(pay, client, key, order)
    except RejectedError as error:
        return problem(402, str(error), await left_for(client, "payments"))
    headers = await left_for(client, "payments")
    if result.degraded:
        headers["X-Degraded-Mode"] = result.level.value
    status = 202 if result.value["state"] == "accepted" else 200
    return JSONResponse({**result.value, "worker": os.getpid()}, status, headers)


async def simple_protected(request: Request) -> JSONResponse:
    """Greets, behind a limit."""
    client = client_of(request)
    body = await greet(client)
    return JSONResponse(body, headers=await left_for(client, "greetings"))


async def health(request: Request) -> JSONResponse:
    """How this worker is, and who else is there."""
    wanted = request.query_params.get("type", "readiness")
    try:
        check_type = HealthCheckType(wanted)
    except ValueError as error:
        raise BadRequestError(400, f"type must be one of {', '.join(one.value for one in HealthCheckType)}") from error
    found = await service.health(check_type)
    workers = [asdict(worker) for worker in await service.fleet()]
    return JSONResponse({**asdict(found), "workers": workers}, 200 if found.healthy else 503)


async def stats(request: Request) -> JSONResponse:
    """Everything that is counted."""
    return JSONResponse(await service.get_comprehensive_stats())


async def _component(request: Request) -> tuple[str, str, Any]:
    """The kind, the name and the statistics of a component. Raises `BadRequestError`."""
    kind, name = request.path_params["kind"], request.path_params["name"]
    sections = await service.get_comprehensive_stats()
    for section in (kind, f"{kind}s"):
        if section not in ("timestamp", "store", "fleet") and name in sections.get(section, {}):
            return section, name, sections[section][name]
    raise BadRequestError(404, f"there is no {kind} {name!r}")


async def component_stats(request: Request) -> JSONResponse:
    """What is counted of one component."""
    _, _, found = await _component(request)
    return JSONResponse(found)


async def reset(request: Request) -> JSONResponse:
    """Makes a component as if it had never been used, for the whole fleet."""
    section, name, _ = await _component(request)
    if section == "rate_limiters":
        await service.get_or_create_rate_limiter(name).reset_all()
    elif section == "circuit_breakers":
        await service.get_or_create_circuit_breaker(name).reset()
    else:
        raise BadRequestError(422, f"{section} have nothing to reset; {' and '.join(sorted(RESETS))} have")
    return JSONResponse({"reset": f"{section}/{name}"})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Checks health in the background as long as the worker runs."""
    readiness.start()
    yield
    await service.close()


app = Starlette(
    routes=[
        Mount(
            "/api/resilience",
            routes=[
                Route("/protected-endpoint", protected_endpoint, methods=["POST"]),
                Route("/simple-protected", simple_protected),
                Route("/health", health),
                Route("/stats", stats),
                Route("/stats/{kind}/{name:path}", component_stats),
                Route("/reset/{kind}/{name:path}", reset, methods=["POST"]),
            ],
        )
    ],
    exception_handlers=dict.fromkeys(REFUSALS, refused),
    lifespan=lifespan,
)
