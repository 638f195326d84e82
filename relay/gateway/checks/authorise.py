"""May this identity do this? Policy says; what no rule allows is denied."""

from collections.abc import Callable
from typing import Final

import msgspec

from relay.gateway.checks.fields import ModelName
from relay.gateway.errors import PolicyUnavailable
from relay.gateway.pipeline import Refusal, RequestContext
from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from relay.gateway.routes import Route

_UNKNOWN_ROUTE: Final = Refusal(404, "unknown_route", "the gateway has no such route")
_NOT_HERE: Final = Refusal(404, "model_not_on_route", "no provider of this gateway has that model on this route")
_DENIED: Final = Refusal(403, "not_allowed", "this device may not use this gateway's models")
_MODEL_DENIED: Final = Refusal(
    403, "model_not_allowed", "this device may not use that model; /v1/models lists its own"
)
_UNAVAILABLE: Final = Refusal(503, "policy_unavailable", "the gateway cannot reach its policy and refuses all work",
                              retryable=True)


class _Model(msgspec.Struct):
    """The one field needed here; the whole body is `schema`'s."""

    model: ModelName = ""


_peek = msgspec.json.Decoder(_Model)


class Authorise:
    """After authenticate. Sets `context.model`, which schema then confirms to be the only one the request names, or
    `context.models`.
    """

    def __init__(self, policy: Policy, *, serves: Callable[[str, str], bool] = lambda operation, model: True) -> None:
        """`serves`: whether a route's operation leads anywhere for a model."""
        self._policy, self._serves = policy, serves

    async def check(self, context: RequestContext) -> Refusal | None:
        target = context.target
        if target is None:
            return _UNKNOWN_ROUTE
        context.policy = self._policy.version
        try:
            return await (self._model(context, target) if target.bodied else self._list(context, target))
        except PolicyUnavailable:
            return _UNAVAILABLE

    def _question(self, context: RequestContext, target: Route, model: str) -> Question:
        return Question(
            context.peer.id, target.verb, model, context.via, self._policy.posture(context.enrolment),
            self._policy.attested_tpm(context.enrolment),
        )

    async def _list(self, context: RequestContext, target: Route) -> Refusal | None:
        context.models = await self._policy.models(self._question(context, target, ""))
        return None if context.models else _DENIED

    async def _model(self, context: RequestContext, target: Route) -> Refusal | None:
        try:
            model = target.model or _peek.decode(context.body).model
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None  # not a request at all: schema says what is wrong with it, and nothing passes schema
        if not model:
            return None  # likewise
        decision = await self._policy.decide_about(context.peer.id, context.enrolment, target.verb, model, context.via)
        context.decision = decision.reason
        if decision.allowed:
            context.model = model
            if self._serves(target.operation, model):
                return None
            return _UNKNOWN_ROUTE if target.model else _NOT_HERE
        if decision.unavailable:
            return _UNAVAILABLE
        return _MODEL_DENIED if await self._policy.models(self._question(context, target, model)) else _DENIED

    async def still(self, context: RequestContext) -> Refusal | None:
        """The same again for an answer under way, if policy has changed since it was asked."""
        if context.policy == self._policy.version:
            return None
        hop = await self._policy.by_hop(context.peer.id, context.enrolment, context.via)
        return await self.check(context) if hop is None else _DENIED
