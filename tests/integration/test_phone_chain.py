"""An edge whose only way is a phone: processes of edge and gateway, and a central that does what the page does."""

import asyncio
import contextlib
from pathlib import Path

from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from store.keys import Passphrase
from tests.integration.test_bluetooth_chain import EdgeHome
from tests.support.mock_provider import WORDS, MockProvider
from tests.support.phone_central import PhoneCentral
from tests.support.relay_process import gateway_process, secret_file
from transport.identity.tls import client_context
from transport.links.base import Endpoint
from transport.links.virtual_join import serve_radio
from transport.links.websocket import WebSocketLink, connect_websocket


async def test_an_edge_joins_and_asks_through_a_phone_alone(tmp_path: Path) -> None:
    radio = tmp_path / "radio.sock"
    edge = EdgeHome(tmp_path / "edge", f"virtual:{radio}")
    async with asyncio.timeout(300), MockProvider() as provider, contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", provider.base_url))
        home = HopHome(tmp_path / "hop", Passphrase("hop pass"))
        identity = await join_hop(home, await gateway.invite("hop/phone"), gateway.https)
        tls = client_context(identity.bundle, identity.svid)
        tunnel = Endpoint.parse(gateway.https.replace("https://", "wss://") + "/v1/tunnel")

        async def dial() -> WebSocketLink:
            return await connect_websocket(tunnel, tls=tls, timeout_s=10)

        server = await serve_radio(radio, "2m", seed=1)
        stack.push_async_callback(server.close)
        phone = PhoneCentral(await server.radio.device("phone"))
        carrying = asyncio.create_task(phone.carry(dial))
        line = secret_file(tmp_path / "invitation", (await gateway.invite("edge/lap-1")).encode())
        assert (await edge.run("join", "--invitation-file", line, "--hop", "phone:"))["endpoints"] == ["phone:"]
        answer = await edge.run("ask", "--relay", "How fast does the pump run?")
        assert (answer["answer"], answer["via"]) == ("".join(WORDS), "spiffe://field.example/hop/phone")
        assert phone.info is not None and phone.info.role == "edge"
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
