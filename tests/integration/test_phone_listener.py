"""The phone page's listener in a gateway process."""

from pathlib import Path

import aiohttp

from tests.support.dpop_page import DpopPage
from tests.support.relay_process import gateway_process


async def test_a_page_joins_and_opens_a_tunnel(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "g", "http://127.0.0.1:9/v1") as gateway, aiohttp.ClientSession() as client:
        url = await gateway.page_url("phone-1")
        page_url, _, invitation = url.partition("#")
        assert page_url == f"{gateway.origin}/hop"
        async with client.get(page_url) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        page = DpopPage(client, gateway.origin, gateway.origin)
        await page.greet()
        status, answer = await page.join(invitation)
        assert (status, answer["id"]) == (200, "spiffe://field.example/hop/phone-1")
        assert (answer["token_type"], answer["expires_in"]) == ("DPoP", 600)
        assert (await page.renew())[0] == 200
        socket = await page.open()
        assert await socket.receive_json() == {"id": "spiffe://field.example/hop/phone-1"}
        await socket.close()
