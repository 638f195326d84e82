"""One prompt's way: look into the documents, decide, then answer here or relay. One span a step, no text in any."""

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

from edge_client.completions import ROUTE, AnswerReader, failure, request_body, whole_calls
from edge_client.engine.base import ChatEngine, Finished, Message, Sampling, Text
from edge_client.errors import BadUse, EmptyPrompt, KeptLocal, NotJoined, PromptTooLong, ProviderFailed, Unreached
from edge_client.extracts import borne_out, extract, nearest, sentences
from edge_client.retrieval import LOCAL_ONLY, Passage, Retrieval, local_context, prompt_with, relayed_context
from edge_client.router.policy import HELD, Decision, decide, features_of, need
from edge_client.router.sensitivity import kinds
from edge_client.scope import Scope
from store.documents import strictest
from transport import telemetry

__all__ = [
    "QUOTED", "SILENT", "Answer", "Assistant", "Deliver", "Leaving", "Question", "Relay", "RelayedAnswer", "Routed",
]

PROMPT_MAX_CHARS: Final = 1 << 20  # of all messages; finer limits follow once it is known where the prompt goes
# How local answers begin that are made from documents, and where these hold none.
QUOTED: Final = "From your documents"
SILENT: Final = "Your documents do not seem to answer this."
_GROUNDED_TOKENS: Final = 96  # an answer from a passage is a sentence or two
_FREE_TOKENS: Final = 512
_log = logging.getLogger(__name__)


class RelayedAnswer(Protocol):
    """See gateway_client.RemoteAnswer. The chunks are complete only if they end without an exception."""

    @property
    def status(self) -> int: ...
    @property
    def content_type(self) -> str: ...
    @property
    def via(self) -> str: ...
    def chunks(self) -> AsyncGenerator[bytes, None]: ...


class Relay(Protocol):
    """What answering needs of gateway_client.GatewayClient."""

    async def request(self, method: str, route: str, body: bytes) -> RelayedAnswer: ...
    async def models(self) -> list[str]: ...
    def report(self, trace_id: str) -> None: ...


@dataclass(frozen=True)
class Question:
    """The conversation, the question last. `model` is what a relayed one asks for; None the configured or first.

    Without `documents` they are not looked into, and none of them travels. `options` are fields of an OpenAI request
    (tools and the like) which a relayed one repeats as they are, in place of `sampling`. The local model heeds none.
    """

    messages: tuple[Message, ...]
    flag: Literal["local", "relay"] | None = None
    model: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    documents: bool = True
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    within: Scope = field(default_factory=Scope)  # which documents are looked into


@dataclass(frozen=True)
class Routed:
    """Delivered before any text. `citations` are the passages the answer is made from; `notes` are for the person."""

    decision: Decision
    model: str
    citations: tuple[Passage, ...]
    notes: tuple[str, ...]
    trace_id: str
    label: str | None = None  # the strictest of what the answer is made from; None without documents
    documents: Literal["held", "silent"] | None = None  # whether they seem to hold an answer; None if not looked into


@dataclass(frozen=True)
class Leaving:
    """Told before anything is sent. `model` is None where the gateway will be asked which it grants."""

    decision: Decision
    model: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """The whole outcome. `via` is the hop's SPIFFE ID, empty if local or direct; timings in milliseconds.

    Tokens are None where a provider does not count them.
    """

    routed: Routed
    text: str
    via: str
    finish_reason: str
    prompt_tokens: int | None
    answer_tokens: int | None
    timings: dict[str, float]
    tool_calls: tuple[Mapping[str, Any], ...] = ()


Deliver = Callable[[Routed | Text], Awaitable[None]]


class Assistant:
    """Answers questions, any number at once; the engine lets them take turns."""

    def __init__(
        self, *, chat: ChatEngine, retrieval: Retrieval | None, relay: Relay | None, tracing: telemetry.Telemetry,
        relay_model: str | None = None, threshold: float | None = None,
        if_reachable: Relay | None = None, quotes: bool = True,
    ) -> None:
        """`if_reachable` is asked in place of `relay` where a local answer will do; it soon raises Unreached.

        `quotes`: the local model is too small to be believed on documents, whose own words come first.
        """
        self._quotes = quotes
        self._if_reachable = if_reachable
        self._chat = chat
        self._retrieval = retrieval
        self._relay = relay
        self._tracing = tracing
        self._relay_model = relay_model
        self._threshold = threshold

    async def answer(
        self, question: Question, deliver: Deliver, leaving: Callable[[Leaving], None] = lambda what: None,
        decided: Callable[[Decision], None] = lambda decision: None,
    ) -> Answer:
        """Delivers Routed, then the text in pieces, and returns the whole. `leaving` hears of a relay beforehand,
        `decided` of each decision at once: also of a refusal, and of one more where no gateway can be found.

        Raises EmptyPrompt, PromptTooLong, KeptLocal (a secret was to be relayed), NotJoined, ProviderFailed, and what
        the engine, the store and the gateway client raise. What `deliver` raises stops the answer.
        """
        if not question.messages or not (question.messages[-1].content.strip() or question.messages[-1].extras):
            raise EmptyPrompt
        if sum(len(message.content) for message in question.messages) > PROMPT_MAX_CHARS:
            raise PromptTooLong("the prompt is over 1 MiB", hint="documents are better ingested than pasted")
        begun = time.monotonic()
        timings: dict[str, float] = {}
        trace_id, relayed = "", False

        async def timed(event: Routed | Text) -> None:
            if isinstance(event, Text):
                timings.setdefault("first_text_ms", _ms(begun, time.monotonic()))
            await deliver(event)

        try:
            with self._tracing.span("edge.ask") as span:
                trace_id = telemetry.trace_id_of(span)
                passages, asked = await self._retrieve(question, timings)
                decision = _for_tools(question, self._decide(question, passages), joined=self._relay is not None)
                kept = self._retrieval is not None and await self._retrieval.keeps(m.content for m in question.messages)
                decision = _for_kept(question, decision) if kept else decision
                span.set_attribute(telemetry.ROUTE, decision.route)
                assert decision.features is not None  # decide() never leaves them out
                figure = need(decision.features)
                span.set_attribute("causeway.need", round(figure, 4))
                span.set_attribute(telemetry.RULE, decision.rule)
                _log.info("%s by rule %s, need %.3f, trace %s", decision.route, decision.rule, figure, trace_id)
                decided(decision)
                if decision.route == "refuse":
                    raise _refusal(decision)
                relayed = decision.route == "relay"
                if relayed:
                    try:
                        answer = await self._answer_by_relay(question, decision, passages, trace_id, timed, leaving)
                    except Unreached:
                        relayed, decision = False, _without_a_way(decision)
                        decided(decision)
                        span.set_attribute(telemetry.ROUTE, decision.route)
                        span.set_attribute(telemetry.RULE, decision.rule)
                if not relayed:
                    answer = await self._answer_here(question, asked, decision, passages, trace_id, timed, kept=kept)
        finally:
            # The gateway joins our spans, all ended now, with its own. What stayed here is no business of its.
            if relayed and self._relay is not None:
                self._relay.report(trace_id)
        timings["total_ms"] = _ms(begun, time.monotonic())
        return replace(answer, timings=timings)

    async def _retrieve(self, question: Question, timings: dict[str, float]) -> tuple[list[Passage], str]:
        """Passages, and the question in full (see Retrieval.for_conversation)."""
        if self._retrieval is None or not question.documents or question.messages[-1].role != "user":
            return [], question.messages[-1].content
        begun = time.monotonic()
        with self._tracing.span("edge.retrieve"):
            found = await self._retrieval.for_conversation(question.messages, within=question.within)
        timings["retrieve_ms"] = _ms(begun, time.monotonic())
        return found

    def _decide(self, question: Question, passages: Sequence[Passage]) -> Decision:
        found: dict[str, None] = {}
        for message in question.messages:  # what travels is the whole conversation, not only its last line
            found.update(dict.fromkeys(kinds("\n".join([message.content, *_texts(message.extras)]))))
        found.update(dict.fromkeys(kinds("\n".join(_texts(question.options)))))
        return decide(features_of(
            question.messages[-1].content, flag=question.flag, sensitive=tuple(found),
            evidence=max((passage.evidence for passage in passages), default=None),
            joined=self._relay is not None, threshold=self._threshold,
        ))

    async def _answer_here(
        self, question: Question, asked: str, decision: Decision, passages: Sequence[Passage], trace_id: str,
        deliver: Deliver, *, kept: bool = False,
    ) -> Answer:
        """By the local model; with a passage its words come first, and of the model's only what these bear out.

        Where the documents are about the question without seeming to answer it, a model this small would make
        something up: the answer then says so. Who asks for more than looking something up, for JSON or for an end at a
        word gets the model's text alone.
        """
        context, state = local_context(passages), _state(passages)
        assert decision.features is not None
        quoting = (
            self._quotes and bool(context) and not decision.features.hard and question.sampling.json_schema is None
            and not question.sampling.stop
        )
        abstains = quoting and state == "silent"
        notes = ("the documents do not seem to answer this",) if state == "silent" and not abstains else ()
        label = strictest(*(passage.label for passage in context), LOCAL_ONLY if kept else None)
        routed = Routed(decision, self._chat.name, tuple(context), notes, trace_id, label, state)
        sampling = question.sampling
        small = self._quotes and bool(context)
        if small and sampling.json_schema is None:
            # A new paragraph or a second list item is where this model begins to make things up.
            sampling = replace(sampling, repeat_penalty=1.0, stop=(*sampling.stop, "\n\n", "\n2."))
        if sampling.max_tokens is None:
            sampling = replace(sampling, max_tokens=_GROUNDED_TOKENS if small else _FREE_TOKENS)
        begins = ""
        wanted = asked, question.messages[-1].content  # the latter counts twice where it leans on the one before
        if quoting:
            quoted = f'({context[0].place}): "{extract(context[0].text, *wanted)}"'
            begins = f"{SILENT} The closest passage {quoted}" if abstains else f"{QUOTED} {quoted}"
        pieces: list[str] = []

        async def say(text: str) -> None:
            if not pieces:
                await deliver(routed)  # not before: what the engine does not take is no answer
            pieces.append(text)
            if text:
                await deliver(Text(text))

        finished: Finished | None = None
        try:
            if abstains:
                await say(begins)
                return Answer(routed, begins, "", "stop", 0, 0, {})
            with self._tracing.span("edge.generate", attributes={
                telemetry.GEN_AI_OPERATION: "chat", telemetry.GEN_AI_REQUEST_MODEL: self._chat.name,
            }) as span:
                messages = [_plain(message) for message in question.messages]
                messages = prompt_with(messages, context, relayed=False, asked=asked)
                held_back = ""
                async with contextlib.aclosing(self._chat.generate(messages, sampling)) as events:
                    async for event in events:
                        if not pieces:
                            await say(begins)
                        if isinstance(event, Finished):
                            finished = event
                        elif quoting:
                            held_back += event.text
                        elif event.text:
                            await say(event.text)
                assert finished is not None  # an engine's last event
                span.set_attribute(telemetry.GEN_AI_INPUT_TOKENS, finished.prompt_tokens)
                span.set_attribute(telemetry.GEN_AI_OUTPUT_TOKENS, finished.answer_tokens)
            if quoting:
                # Told apart from the passage's own words by the empty line.
                if stated := _borne_out(held_back, asked, *nearest(context[0].text, *wanted)):
                    await say(f"\n\n{stated}")
                else:
                    note = "the local model's own words do not stand in the quoted ones and were left out"
                    routed = replace(routed, notes=(*routed.notes, note))
        finally:  # what was delivered is known to somebody, also where it ended early
            if label == LOCAL_ONLY and self._retrieval is not None:
                await self._retrieval.keep("".join(pieces))
        if finished.dropped:
            note = f"the {finished.dropped} oldest messages did not fit into the local model and were left out"
            routed = replace(routed, notes=(*routed.notes, note))
        reason = "stop" if quoting and question.sampling.max_tokens is None else finished.reason
        return Answer(routed, "".join(pieces), "", reason, finished.prompt_tokens, finished.answer_tokens, {})

    async def _answer_by_relay(
        self, question: Question, decision: Decision, passages: Sequence[Passage], trace_id: str, deliver: Deliver,
        leaving: Callable[[Leaving], None],
    ) -> Answer:
        # Only what the router has chosen may stay: not what somebody asked to relay, nor what needs tools.
        may_stay = decision.rule not in ("flag-relay", "tools")
        relay = self._if_reachable if may_stay and self._if_reachable is not None else self._relay
        assert relay is not None  # decide() never relays without
        model = question.model or self._relay_model
        context, kept = relayed_context(passages)
        notes = (
            *([f"sent with it: {_passages(context)}"] if context else []),
            *([f"{kept} passage(s) of your documents stay on this device"] if kept else []),
        )
        leaving(Leaving(decision, model, notes))
        with self._tracing.span("edge.relay", attributes={telemetry.GEN_AI_OPERATION: "chat"}) as span:
            if model is None:
                granted = await relay.models()
                if not granted:
                    raise KeptLocal("the gateway grants this device no model", hint="ask whoever runs the gateway")
                model = granted[0]
            messages = prompt_with(question.messages, context, relayed=True)
            body = request_body(model, messages, question.sampling, question.options)
            span.set_attribute(telemetry.GEN_AI_REQUEST_MODEL, model)
            span.set_attribute(telemetry.BYTES_OUT, len(body))
            remote = await relay.request("POST", ROUTE, body)
            if remote.status != 200:
                raise await failure(remote.status, remote.chunks())
            label = strictest(*(passage.label for passage in context))
            routed = Routed(decision, model, tuple(context), notes, trace_id, label, _state(passages))
            await deliver(routed)
            reader = AnswerReader(remote.content_type)
            pieces: list[Text] = []
            async with contextlib.aclosing(remote.chunks()) as chunks:
                async for piece in reader.pieces(chunks):
                    pieces.append(piece)
                    await deliver(piece)
            if not pieces:
                raise ProviderFailed("the provider's answer is empty", hint="ask again")
            span.set_attribute(telemetry.VIA, remote.via)
            for name, tokens in (
                (telemetry.GEN_AI_INPUT_TOKENS, reader.prompt_tokens),
                (telemetry.GEN_AI_OUTPUT_TOKENS, reader.answer_tokens),
            ):
                if tokens is not None:
                    span.set_attribute(name, tokens)
        return Answer(
            routed, "".join(piece.text for piece in pieces), remote.via, reader.finish_reason, reader.prompt_tokens,
            reader.answer_tokens, {}, tuple(whole_calls(call for piece in pieces for call in piece.calls)),
        )


def _for_tools(question: Question, decision: Decision, *, joined: bool) -> Decision:
    """Only a model behind the gateway calls tools: what offers some goes there, unless it has to stay.

    What stays is answered without a call, or refused if the client wants nothing but a call.
    """
    choice = question.options.get("tool_choice", "auto")
    if decision.route != "local" or not question.options.get("tools") or choice == "none":
        return decision
    if question.flag == "local":
        raise BadUse("the local model calls no tools", hint="ask `auto`, or a model of the gateway")
    if joined and decision.rule != "private":
        reasons = ("the prompt offers tools, which the local model cannot call",)
        return replace(decision, route="relay", rule="tools", reasons=reasons)
    if choice != "auto":
        return replace(decision, route="refuse", rule=decision.rule if joined else "not-joined")
    return replace(decision, reasons=(*decision.reasons, "the local model calls none of the tools"))


def _texts(value: object) -> Iterator[str]:
    """Every text within what came as JSON: what is looked through before it travels."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, str):
                yield f"{name}: {inner}"  # {"password": "..."} is one find, not two harmless words
            else:
                yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _plain(message: Message) -> Message:
    """The message for a model that knows of no tools."""
    if message.role == "tool":
        return Message("user", f"The tool gave: {message.content}")
    if message.extras:
        called = [str((call.get("function") or {}).get("name")) for call in message.extras.get("tool_calls", ())]
        return Message(message.role, message.content or f"I call {', '.join(called)}.")
    return message


def _state(passages: Sequence[Passage]) -> Literal["held", "silent"] | None:
    if not passages:
        return None
    return "held" if max(passage.evidence for passage in passages) >= HELD else "silent"


def _borne_out(text: str, question: str, passage: Sequence[str], best: int) -> str:
    """The first sentences that stand in the passage's best, up to one that does not or says the same again."""
    kept: list[str] = []
    for sentence in sentences(text):
        if sentence in kept or not borne_out(sentence, question, passage[best]):
            break
        kept.append(sentence)
    return " ".join(kept)


def _passages(context: Sequence[Passage]) -> str:
    titles = ", ".join(dict.fromkeys(passage.document for passage in context))
    return f"{len(context)} passage{'s' if len(context) > 1 else ''} of your documents ({titles})"


def _for_kept(question: Question, decision: Decision) -> Decision:
    """A conversation with an answer made from local-only documents stays here, or is refused if it must not."""
    if decision.route != "relay":
        return decision
    route: Literal["local", "refuse"] = "refuse" if question.flag == "relay" or decision.rule == "tools" else "local"
    reasons = ("the conversation holds an answer made from local-only documents",)
    return replace(decision, route=route, rule=LOCAL_ONLY, reasons=reasons)


def _without_a_way(decision: Decision) -> Decision:
    reasons = ("there is no way to the gateway now, so a smaller model answers", *decision.reasons)
    return replace(decision, route="local", rule="unreached", reasons=reasons)


def _refusal(decision: Decision) -> KeptLocal | NotJoined:
    if decision.rule == "not-joined":
        return NotJoined()
    return KeptLocal(decision.reasons[0], hint="take it out, or ask with `--local`")


def _ms(begun: float, ended: float) -> float:
    return round((ended - begun) * 1000, 1)
