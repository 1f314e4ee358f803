"""`/openapi.json`, and `/docs`: a page that shows it and asks what is typed in, all of it served from here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import __version__
from gateway.errors import KeyUnknown, UnknownModel
from gateway.serving.endpoints import on_gateway_error
from gateway.serving.keygate import key_of
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.replies import error_headers
from gateway.serving.router import Router
from gateway.serving.target import PredictionPath

DOCUMENT, PAGE = "/openapi.json", "/docs"
_OWN = Path(__file__).with_name("page")
# The package whose files the page shows the document with. It is never imported: it would bring a web framework along.
_SHOWN_WITH = "flask_swagger_ui"
_ASSETS = {
    "swagger-ui.css": ("text/css", True),
    "swagger-ui-bundle.js": ("text/javascript", True),
    "docs.css": ("text/css", False),
    "docs.js": ("text/javascript", False),
}
# Nothing is loaded from elsewhere or written into the page as code; pictures in the style sheet are data addresses.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_ASSETS = (
    "the docs page needs files that are not installed: pip install 'sluicegate[docs]'; "
    f"the document that it shows is at {DOCUMENT}"
)
# Documents kept: one, or one for each set of models that API keys are good for.
_MAX_KEPT = 16


class _Kept(NamedTuple):
    """A document as it is sent, and what it was made of."""

    made_of: Any
    body: bytes
    etag: str


class ApiDocs:
    """The document, made anew when other versions answer than before, and the page. Used on the event loop."""

    def __init__(
        self,
        router: Router,
        registry: Registry,
        paths: Sequence[PredictionPath],
        default_model: Callable[[], str],
        *,
        asks_for_keys: bool,
    ) -> None:
        self._router = router
        self._registry = registry
        self._paths = paths
        self._default_model = default_model
        self._asks_for_keys = asks_for_keys
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._making = asyncio.Lock()

    def routes(self) -> list[Route]:
        """The paths that they are asked by."""
        return [Route(DOCUMENT, self.document), Route(PAGE, self.page), Route(f"{PAGE}/{{asset}}", self.asset)]

    async def document(self, request: Request) -> Response:
        """All models; with a key that is not good for all, those that it is good for."""
        key = key_of(request.scope)
        names = tuple(sorted(name for name in self._router.adopted if key is None or key.allows(name)))
        async with self._making:  # whoever asks meanwhile gets what is made for the first one
            kept = await self._up_to_date(names)
        headers = {"etag": kept.etag, "cache-control": "private, no-cache"}
        if kept.etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(kept.body, headers=headers, media_type="application/json")

    async def _up_to_date(self, names: tuple[str, ...]) -> _Kept:
        models = [(name, self._answering(name), tuple(self._labels(name))) for name in names]
        default = self._default_model()
        made_of = (
            [(name, [(live.version, live.digest) for live in lives], tags) for name, lives, tags in models],
            default,
        )
        kept = self._kept.get(names)
        if kept is None or kept.made_of != made_of:
            body = await asyncio.to_thread(self._made, [model for model in models if model[1]], default)
            kept = _Kept(made_of, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[names] = kept
        return kept

    def _answering(self, name: str) -> list[LiveVersion]:
        """The versions that the model's route names and that are warm, the default one first."""
        route = self._router.adopted[name].route
        others = sorted(route.named - {route.default_version})
        found = [self._registry.find(name, version) for version in (route.default_version, *others)]
        return [live for live in found if live is not None]

    def _labels(self, name: str) -> list[str]:
        variants = self._router.adopted[name].route.variants
        return [label for label, version in variants.items() if self._registry.find(name, version) is not None]

    def _made(self, models: Sequence[tuple[str, list[LiveVersion], tuple[str, ...]]], default: str) -> bytes:
        """In a thread: the bytes of the document."""
        # Here and not above: workers that nobody asks need none of it.
        from gateway.codecs.schema_parts import Described, plain
        from gateway.serving import openapi

        views = []
        for name, lives, labels in models:
            versions = tuple(
                openapi.VersionView(
                    live.version,
                    Described(live.signature, live.misdeclared, plain(live.signature, live.example)),
                )
                for live in lives
            )
            views.append(openapi.ModelView(name, versions, labels))
        paths = [openapi.PathView(path.pattern, path.codec.name, path.methods) for path in self._paths]
        made = openapi.document(
            views,
            paths,
            gateway_version=__version__,
            default_model=default,
            asks_for_keys=self._asks_for_keys,
        )
        return orjson.dumps(made)

    async def page(self, request: Request) -> Response:
        """The page, or how to get it."""
        return await asyncio.to_thread(_page)

    async def asset(self, request: Request) -> Response:
        """A file of the page. They say nothing of models."""
        found = await asyncio.to_thread(_asset, request.path_params["asset"])
        if found is None:
            raise UnknownModel(f"no such path: {request.url.path}")
        return found


async def on_refusal(request: Request, error: Exception) -> Response:
    """A question that has no answer; who opens the page in a browser, which knows no key, gets it to type one in."""
    if isinstance(error, KeyUnknown) and request.url.path == PAGE and "text/html" in request.headers.get("accept", ""):
        headers = {name.decode(): value.decode() for name, value in error_headers(error)}
        return await asyncio.to_thread(_page, 401, headers)
    return await on_gateway_error(request, error)


def _shown_with() -> Path | None:
    """Where the files of the optional package are; None without it. Reads the disk."""
    spec = find_spec(_SHOWN_WITH)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) / "dist" if places else None


def _page(status: int = 200, headers: dict[str, str] | None = None) -> Response:
    if _shown_with() is None:
        return Response(orjson.dumps({"error": _NO_ASSETS}), 404, headers, media_type="application/json")
    text = (_OWN / "docs.html").read_text()
    if status == 401:
        text = text.replace("<!--asks-->", '<meta name="asks-for-key" content="yes">')
    return Response(text, status, {**(headers or {}), **_GUARDED}, media_type="text/html")


def _asset(name: str) -> Response | None:
    """A file of the page; None if there is none of that name."""
    kind, is_theirs = _ASSETS.get(name, ("", False))
    folder = _shown_with() if is_theirs else _OWN
    if not kind or folder is None:
        return None
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError:
        return None
    return Response(content, 200, {**_GUARDED, "cache-control": "max-age=3600"}, media_type=kind)


_GUARDED = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
