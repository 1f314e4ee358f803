"""All paths of the public port that the ASGI app answers, and who stands before them."""

from __future__ import annotations

from starlette.routing import Route

from gateway.serving.docs import ApiDocs
from gateway.serving.doorway import Doorway
from gateway.serving.endpoints import PredictionEndpoint, Questions
from gateway.serving.extensions import Extensions
from gateway.serving.feedback import PATH as FEEDBACK_PATH
from gateway.serving.feedback import FeedbackEndpoint
from gateway.serving.keygate import KeyGate
from gateway.serving.registry import Registry
from gateway.serving.router import Router
from gateway.serving.tfs_questions import TfsQuestions
from gateway.serving.torchserve_questions import TorchServeQuestions


def all_routes(
    doorway: Doorway,
    questions: Questions,
    extensions: Extensions,
    feedback: FeedbackEndpoint,
    router: Router,
    registry: Registry,
    gate: KeyGate | None,
    *,
    max_batch_rows: int,
) -> list[Route]:
    """The routes, in the order in which a path is looked for. gate: asks for API keys, None if nobody does."""
    others = TorchServeQuestions(router, registry, questions.is_ready, doorway.paths, max_batch_rows=max_batch_rows)
    docs = ApiDocs(router, registry, doorway.paths, doorway.default_model, asks_for_keys=gate is not None)
    theirs = others.routes()
    routes = [
        *(Route(path.pattern, PredictionEndpoint(path, doorway)) for path in doorway.paths),
        Route(FEEDBACK_PATH, feedback),
        *extensions.routes(),
        *questions.routes(),
        *TfsQuestions(router, registry).routes(),
        *docs.routes(),
    ]
    if gate is not None:
        gate.guard(routes, themselves=frozenset({PredictionEndpoint, FeedbackEndpoint}))
        gate.guard(theirs, refusal=others.refusal)
    return [*routes, *theirs]
