"""The OpenAPI 3.1 document, and a page for people, both made of the routes' declarations. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from appservice.api.declare import PATH, PREFIX, Route
from appservice.api.permissions import TABLE, Who
from appservice.api.problems import CONTENT_TYPE, Problem

_REFERENCE: Final = "#/components/schemas/{model}"
_DESCRIPTION: Final = (
    "Teleconsultation on Matrix. What FAJMA shows is a secondary, investigational notification, not"
    " a certified medical device. Every error is a problem (RFC 9457) with a stable `code`."
)


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The OpenAPI document.

    Args:
        routes: every route.
        version: of FAJMA.
    """
    models = {
        (model, mode)
        for route in routes
        for model, mode in ((route.body, "validation"), (route.answer, "serialization"))
        if model is not None
    }
    schemas, definitions = models_json_schema(
        [*sorted(models, key=lambda one: one[0].__name__), (Problem, "serialization")],  # type: ignore[list-item]
        ref_template=_REFERENCE,
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(
            route,
            {model: schema for (model, _), schema in schemas.items()},  # type: ignore[misc]
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "FAJMA", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    route: Route, schemas: Mapping[type[BaseModel], Mapping[str, Any]]
) -> dict[str, Any]:
    answers: dict[str, Any] = {str(route.status): _success(route, schemas)}
    if route.has_version and route.method == "GET":
        answers["304"] = {"description": "You have this version (If-None-Match)."}
    for status in _errors(route):
        answers[str(status)] = {
            "description": "A problem.",
            "content": {CONTENT_TYPE: {"schema": schemas[Problem]}},
        }
    words = (route.method.lower(), *route.path.replace("{", "").replace("}", "").split("/"))
    operation: dict[str, Any] = {
        "operationId": "_".join(word.replace("-", "_").replace(".", "_") for word in words if word),
        "summary": route.summary,
        "description": f"For: {', '.join(sorted(TABLE[route.needs]))}.",
        "parameters": [*_path(route), *_query(route), *_headers(route)],
        "responses": answers,
    }
    if Who.NOBODY in TABLE[route.needs]:
        operation["security"] = [{}]
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[route.body]}},
        }
    return operation


def _success(route: Route, schemas: Mapping[type[BaseModel], Mapping[str, Any]]) -> dict[str, Any]:
    schema: Mapping[str, Any] = (
        schemas[route.answer] if route.answer is not None else _OTHER[route.content_type]
    )
    answer: dict[str, Any] = {
        "description": route.summary,
        "content": {route.content_type: {"schema": schema}},
    }
    if route.has_version:
        answer["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "The version."}}
    return answer


_OTHER: Final[Mapping[str, Mapping[str, Any]]] = {
    "application/json": {"type": "object"},
    "text/html": {"type": "string"},
    "text/event-stream": {"type": "string"},
}


def _errors(route: Route) -> list[int]:
    found = {400, 401, 403, 413, 415, 429, 500, 502, 503}
    if route.parameters or route.body is not None or route.query.model_fields:
        found |= {404, 409, 410}
    if route.takes_key:
        found |= {409, 422}
    if route.version_of is not None:
        found |= {412, 428}
    return sorted(found)


def _path(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{PATH[name].pattern}$"},
        }
        for name in route.parameters
    ]


def _query(route: Route) -> list[dict[str, Any]]:
    schema = route.query.model_json_schema(ref_template=_REFERENCE)
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "description": one.get("description", ""),
            "schema": _without_none(one),
        }
        for name, one in schema.get("properties", {}).items()
    ]


def _without_none(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter is left out or has a value: it cannot be null."""
    found = {key: value for key, value in schema.items() if key not in {"title", "description"}}
    choices = [one for one in found.pop("anyOf", ()) if one.get("type") != "null"]
    if choices:
        found |= choices[0]
    if found.get("default", ...) is None:
        del found["default"]
    return found


_FORMS: Final[Mapping[str, Mapping[str, str]]] = {
    "Idempotency-Key": {"pattern": r"^[\x21-\x7e]{1,255}$"},
    "Last-Event-ID": {"pattern": r"^r[0-9]{1,18}-a[0-9]{1,18}$"},
}


def _headers(route: Route) -> list[dict[str, Any]]:
    found: list[tuple[str, bool, str]] = []
    if route.takes_key:
        key = "Up to 255 visible characters; within 24 h the same request gets the same answer."
        found.append(("Idempotency-Key", False, key))
    if route.version_of is not None:
        found.append(("If-Match", True, f"The ETag of {route.version_of.name}."))
    if route.content_type == "text/event-stream":
        found.append(("Last-Event-ID", False, "The id of the last event that you have."))
    return [
        {
            "name": name,
            "in": "header",
            "required": required,
            "description": description,
            "schema": {"type": "string", **_FORMS.get(name, {})},
        }
        for name, required, description in found
    ]


# --- the page -------------------------------------------------------------------------------------

PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
"""Content-Security-Policy of the page: it fetches nothing from anywhere and runs nothing."""

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "details{border:1px solid #8886;border-radius:.4rem;margin:.5rem 0;padding:.5rem .8rem}"
    "summary{cursor:pointer}code,b{font-family:ui-monospace,monospace}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;"
    "padding:.2rem .6rem;border-top:1px solid #8884}:root{color-scheme:light dark}"
)


def page(api: Mapping[str, Any]) -> str:
    """The document as a page without scripts."""
    operations = [
        (method.upper(), path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>FAJMA API</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style></head><body><h1>FAJMA API {escape(api['info']['version'])}</h1>"
        f"<p>{escape(api['info']['description'])}</p>"
        '<p><a href="openapi.json">openapi.json</a></p>'
        + "".join(_shown(*one) for one in operations)
        + "<h2>What is sent and answered</h2>"
        + "".join(_model(name, one) for name, one in api["components"]["schemas"].items())
        + "</body></html>"
    )


def _shown(method: str, path: str, operation: Mapping[str, Any]) -> str:
    body = operation.get("requestBody", {}).get("content", {})
    answers = [
        f"<li>{escape(status)}: {_link(next(iter(answer.get('content', {}).values()), {}))}</li>"
        for status, answer in operation["responses"].items()
        if status < "400"
    ]
    errors = ", ".join(status for status in operation["responses"] if status >= "400")
    rows = [
        (one["name"], one["in"], "required" if one["required"] else "", one.get("description", ""))
        for one in operation["parameters"]
    ]
    sent = "".join(f"<p>Body: {_link(one)}</p>" for one in body.values())
    return (
        f"<details><summary><b>{method} {escape(path)}</b> {escape(operation['summary'])}</summary>"
        f"<p>{escape(operation['description'])}</p>{_table(rows)}{sent}"
        f"<ul>{''.join(answers)}<li>problems: {errors}</li></ul></details>"
    )


def _model(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            field,
            _type(one),
            "required" if field in required else "",
            str(one.get("description", "")),
        )
        for field, one in schema.get("properties", {}).items()
    ] or [("", _type(schema), "", "")]
    description = escape(str(schema.get("description", "")).split("\n")[0])
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{description}</p>{_table(rows)}'


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>" if lines else ""


def _link(content: Mapping[str, Any]) -> str:
    name = str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else "text"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(one) for one in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or schema.get("const", ""))
