"""API keys before everything that the ASGI app answers, but for what probes ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import GatewayError
from gateway.serving.counts import Counts
from gateway.serving.keyring import HeldKey, KeyRing

# Health and readiness of the server: asked by probes, which have no keys; and the files with which the docs page asks
# for one. They say nothing of models.
OPEN = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs/{asset}"})
# Where the rest of the app finds the key of a request.
SCOPE_KEY = "sluicegate.key"
# The answer to who has no key, or not a good one.
Refusal = Callable[[GatewayError], Response]


class KeyGate:
    """Lets a request in by its headers. Used on the event loop only."""

    def __init__(self, ring: KeyRing, counts: Counts) -> None:
        self._ring = ring
        self._counts = counts

    def check(self, scope: Scope) -> None:
        """Raises KeyUnknown, KeyOutOfScope, QuotaExceeded, KeysUnavailable."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            key = self._ring.identify(headers, scope.get("path_params", {}).get("model"))
            self._ring.charge(key)
        except GatewayError as error:
            self._ring.refused(error)
            self._counts.refused(error.code)
            raise
        scope[SCOPE_KEY] = key

    def guard(
        self, routes: Iterable[Route], *, themselves: frozenset[type] = frozenset(), refusal: Refusal | None = None
    ) -> None:
        """Stand before all *routes* but those that are open and those whose endpoint checks keys itself.

        themselves: the classes of the latter. A route that is new is closed until somebody opens it here. refusal: how
        these routes refuse, if not as all do.
        """
        for route in routes:
            if route.path not in OPEN and type(route.endpoint) not in themselves:
                route.app = self._before(route.app, refusal)

    def _before(self, app: ASGIApp, refusal: Refusal | None) -> ASGIApp:
        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                self.check(scope)
            except GatewayError as error:
                if refusal is None:
                    raise
                answer: ASGIApp = refusal(error)
            else:
                answer = app
            await answer(scope, receive, send)

        return guarded


def key_of(scope: Scope) -> HeldKey | None:
    """The key that a request came with; None while none is asked for."""
    found: HeldKey | None = scope.get(SCOPE_KEY)
    return found
