"""Which version answers: the routes that this worker has adopted, asked once per prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.errors import ModelNotReady, UnknownLabel, UnknownModel, UnknownVersion
from gateway.flags.compile import PINNED, SPLIT, Decision, ModelOptions, Route
from gateway.serving.call import Call
from gateway.serving.guard import NO_ARMS, Arms
from gateway.serving.guards import Guards
from gateway.serving.registry import LiveVersion, Registry
from gateway.serving.target import Label

# The variant's name of a prediction that asked for its version itself: it counts for no variant's share.
PINNED_VARIANT = "pinned"


# Decisions remembered per route: those for the keys that come often.
_MAX_DECISIONS = 16_384
_MAX_KEY_CHARS = 128


@dataclass(frozen=True, slots=True)
class Adopted:
    """A model's route in force in this worker, and the options that its other flags give.

    sampling_limit: ids whose hash is below it are sampled, or looked at by rules. decisions: by targeting key, for a
    route that looks at nothing else. lives: the versions that it has given, which stay warm for as long as the route
    names them. arms: where its requests count, and who stands behind a candidate; empty if all get one version.
    """

    route: Route
    options: ModelOptions
    sampling_limit: float
    decisions: dict[str, Decision] = field(default_factory=dict)
    lives: dict[str, LiveVersion] = field(default_factory=dict)
    arms: Arms = NO_ARMS
    is_watched: bool = False


class Router:
    """Adopted routes by model; `watch` replaces them, each by one assignment. Used on the event loop only."""

    def __init__(self, registry: Registry, guards: Guards) -> None:
        self._registry = registry
        self._guards = guards
        self.adopted: dict[str, Adopted] = {}
        self.known: set[str] = set()  # models that the flags name, adopted or not

    def route(self, call: Call) -> LiveVersion:
        """Choose the version of *call*, hold it, and return it. It is held until `Registry.release`.

        Raises UnknownModel, UnknownVersion (pinned and not warm), UnknownLabel, ModelNotReady, TargetingKeyMissing.
        """
        adopted = self.adopted.get(call.model)
        if adopted is None:
            raise self._unknown(call.model)
        route = adopted.route
        if call.pinned is None:
            key = call.headers.get("x-targeting-key")
            decision = adopted.decisions.get(key)  # type: ignore[arg-type]  # None finds nothing
            if decision is None:
                decision = self._decide(adopted, key, call)
            call.options = adopted.options
            if adopted.is_watched:
                decision = self._in_its_arm(adopted.arms, decision, call)
            live = adopted.lives.get(decision.version)
        else:
            is_label = type(call.pinned) is Label
            version = _version_of(route, call.pinned) if is_label else self._meant(call.model, call.pinned)
            decision = Decision(PINNED_VARIANT, version, PINNED)
            call.options = adopted.options
            live = None
        if live is None:
            decision, live = self._find(adopted, call, decision)
        live.holders += 1
        call.route = route
        call.sampling_limit = adopted.sampling_limit
        call.decision = decision
        call.live = live
        call.is_held = True
        return live

    def _in_its_arm(self, arms: Arms, decision: Decision, call: Call) -> Decision:
        """Note where a call counts; a candidate that is shut gets it only as a try, and else the default variant."""
        arm = (arms.split if decision.reason is SPLIT else arms.ruled).get(decision.variant)
        if arm is None:
            return decision
        guard = arm.guard
        if guard is not None and guard.is_shut:
            return self._guards.admit(call, arm, guard, decision)
        call.arm = arm
        return decision

    def _find(self, adopted: Adopted, call: Call, decision: Decision) -> tuple[Decision, LiveVersion]:
        live = self._registry.find(call.model, decision.version)
        if live is None:
            return self._divert(adopted, call, decision)
        if call.pinned is None:
            adopted.lives[decision.version] = live
        return decision, live

    def _divert(self, adopted: Adopted, call: Call, decision: Decision) -> tuple[Decision, LiveVersion]:
        """What the default variant has, for a call whose version is quarantined, or was and is not warm again."""
        live = self._registry.find(call.model, adopted.route.default_version)
        if call.pinned is not None or live is None:
            raise self._not_loaded(call, decision)
        call.arm = None
        arm = adopted.arms.split.get(decision.variant) if decision.reason is SPLIT else None
        return self._guards.divert(call, adopted.route, arm, decision), live

    def _decide(self, adopted: Adopted, key: str | None, call: Call) -> Decision:
        route, came = adopted.route, key
        if key is not None and not key.isascii():
            key = _as_utf8(key)
        decision = route.decide(key, call.prediction_id, call.headers, call.codec.name)
        if adopted.is_watched and decision.reason is SPLIT:
            counts = adopted.arms.split[decision.variant].counts
            if counts is not None:
                counts.saw(came or None)
        if key and came is not None and len(came) <= _MAX_KEY_CHARS and route.is_sticky:
            if len(adopted.decisions) >= _MAX_DECISIONS:
                adopted.decisions.clear()
            adopted.decisions[came] = decision
        return decision

    def default(self, model: str) -> LiveVersion:
        """The version that answers by default, for questions about the model. Raises UnknownModel, ModelNotReady."""
        adopted = self.adopted.get(model)
        live = self._registry.find(model, adopted.route.default_version) if adopted is not None else None
        if live is None:
            raise self._unknown(model)
        return live

    def pinned(self, model: str, version: str) -> LiveVersion:
        """A warm version or variant, for questions about it. Raises UnknownModel, UnknownVersion."""
        if model not in self.known:
            raise self._unknown(model)
        live = self._registry.find(model, self._meant(model, version))
        if live is None:
            raise self._unknown_version(model, version)
        return live

    def labelled(self, model: str, label: str) -> LiveVersion:
        """The warm version that a variant has, for questions about it. Raises as `pinned` does, and UnknownLabel."""
        adopted = self.adopted.get(model)
        if adopted is None:
            raise self._unknown(model)
        return self.pinned(model, _version_of(adopted.route, label))

    def only_model(self) -> str:
        """The one model that the flags name; empty if there are several, or none."""
        return next(iter(self.known)) if len(self.known) == 1 else ""

    def _meant(self, model: str, asked: str) -> str:
        """The version that a path asks for: its own name, or that of a variant of the route, goes."""
        adopted = self.adopted.get(model)
        if adopted is None or self._registry.find(model, asked) is not None:
            return asked
        return adopted.route.variants.get(asked, asked)

    def _unknown(self, model: str) -> UnknownModel | ModelNotReady:
        if model in self.known:
            return ModelNotReady(f"no version of model {model!r} is warm yet")
        if not model:
            return UnknownModel("the path names no model, and which one it means is not set (server.default_model)")
        return unknown_model(model)

    def _unknown_version(self, model: str, version: str) -> UnknownVersion:
        warm = ", ".join(self._registry.warm_versions(model)) or "none"
        return UnknownVersion(f"version {version!r} of model {model!r} is not loaded here; loaded: {warm}")

    def _not_loaded(self, call: Call, decision: Decision) -> UnknownVersion | ModelNotReady:
        if call.pinned is not None:
            return self._unknown_version(call.model, decision.version)
        is_out = self._registry.state(call.model, decision.version) == "quarantined"
        stands = "quarantined" if is_out else "not warm"
        return ModelNotReady(f"version {decision.version!r} of model {call.model!r} is {stands} here")


def unknown_model(name: str) -> UnknownModel:
    """No model of that name is served here."""
    error = UnknownModel(f"model {name!r} is not served here")
    error.model = name
    return error


def _version_of(route: Route, label: str) -> str:
    """What the variant of that name has. Raises UnknownLabel."""
    version = route.variants.get(label)
    if version is None:
        variants = ", ".join(route.variants)
        raise UnknownLabel(f"the route of model {route.model!r} has no variant {label!r}; it has: {variants}")
    return version


def _as_utf8(key: str) -> str:
    """A header value, read as Latin-1 by the door, as the UTF-8 text that it most likely is.

    Other flagd evaluators hash that text, and so put the key into the same bucket.
    """
    try:
        return key.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return key
