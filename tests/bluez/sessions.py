"""The product's processes, edge, hop and gateway, with nothing between edge and hop but BlueZ at either end."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from store.keys import Passphrase
from tests.bluez.stack import EDGE, HOP, Stack
from tests.integration.test_bluetooth_chain import EdgeHome
from tests.support.mock_provider import STREAM, MockProvider, chunk
from tests.support.relay_process import gateway_process, relay, secret_file

VIA = "spiffe://field.example/hop/pi"
LONG = "".join(f"Line {number} of a long answer about the pump. " for number in range(150))  # some 6 s, by its cells
PROMPT = ", ".join(f"{number} bar" for number in range(8_000))
UNDER_WAY_S = 2.0  # after the provider was asked: the answer's text is on its way


class Lab:
    def __init__(self, edge: EdgeHome, provider: MockProvider) -> None:
        self.edge, self.provider = edge, provider

    async def ask(self, prompt: str, answer: str, meanwhile: Callable[[], Awaitable[None]] | None = None) -> float:
        """Seconds until the whole answer was there, for which the provider was called once."""
        self.provider.stream = [chunk(answer[start:start + 50]) for start in range(0, len(answer), 50)] + STREAM[-2:]
        self.provider.began.clear()
        calls, begun = self.provider.calls, time.monotonic()
        asking = asyncio.create_task(self.edge.run("ask", "--relay", prompt))
        if meanwhile is not None:
            await self.provider.began.wait()
            await asyncio.sleep(UNDER_WAY_S)
            assert not asking.done(), "the answer came before the fault"
            await meanwhile()
        result = await asking
        assert (result["answer"], result["via"]) == (answer, VIA), result
        assert self.provider.calls == calls + 1
        return time.monotonic() - begun


async def lab(stack: Stack) -> Lab:
    """Made by the first step that needs it, which takes the longest, and closed with the stack."""
    if isinstance(stack.lab, Lab):
        return stack.lab
    stack.lab = await chain(stack.exits, "ble", "ble:")
    return stack.lab


async def chain(exits: AsyncExitStack, listen: str, endpoint: str) -> Lab:
    """A gateway, a hop that listens so, and an edge that has joined by way of `endpoint`."""
    folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
    provider = await exits.enter_async_context(MockProvider())
    gateway = await exits.enter_async_context(gateway_process(folder / "gateway", provider.base_url))
    await join_hop(HopHome(folder / "hop", Passphrase("hop pass")), await gateway.invite("hop/pi"), gateway.https)
    await exits.enter_async_context(relay(
        "hop", "serve", "--home", str(folder / "hop"), "--passphrase-file",
        secret_file(folder / "hop-pass", "hop pass"), "--listen", listen, "--radio", f"system:hci{HOP}",
    ))
    edge = EdgeHome(folder / "edge", f"system:hci{EDGE}")
    invitation = (await gateway.invite("edge/lap-1", endpoint)).encode()
    line = secret_file(folder / "invitation", invitation)
    await edge.run("join", "--invitation-file", line)
    return Lab(edge, provider)


async def join_and_ask(stack: Stack) -> str:
    begun = time.monotonic()
    made = await lab(stack)
    joined = time.monotonic() - begun
    took = await made.ask("How fast does the pump run?", "The pump runs at 6 bar.")
    return f"joined after {joined:.1f} s with everything started, answer after {took:.1f} s"


async def large_prompt(stack: Stack) -> str:
    made = await lab(stack)
    took = await made.ask(PROMPT, "Noted.")
    assert PROMPT.encode() in made.provider.bodies[-1]
    return f"{len(PROMPT) // 1000} kB and the answer in {took:.1f} s"


async def drop_and_resume(stack: Stack) -> str:
    made = await lab(stack)
    took = await made.ask("Explain the pump.", LONG, lambda: stack.radio("drop"))
    return f"whole after {took:.1f} s, asked once"


async def adapter_removed(stack: Stack) -> str:
    async def pull() -> None:
        await stack.radio(f"remove {HOP}")
        await asyncio.sleep(1)
        await stack.radio(f"add {HOP}")
        await stack.switch_on(HOP)

    made = await lab(stack)
    return f"whole after {await made.ask('Explain the pump.', LONG, pull):.1f} s, asked once"


async def daemon_restarted(stack: Stack) -> str:
    async def restart() -> None:
        await stack.stop_daemon()
        await stack.start_daemon()

    made = await lab(stack)
    return f"whole after {await made.ask('Explain the pump.', LONG, restart):.1f} s, asked once"


STEPS = {
    "session-join-and-ask": join_and_ask,
    "session-large-prompt": large_prompt,
    "session-drop-and-resume": drop_and_resume,
    "session-adapter-removed": adapter_removed,
    "session-daemon-restarted": daemon_restarted,
}
