"""Edge, hop and gateway as processes, with nothing between edge and hop but a (virtual) radio."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay.hop.identity import HopHome
from relay.hop.identity import join as join_hop
from store.keys import Passphrase
from tests.support.mock_provider import WORDS, MockProvider
from tests.support.relay_process import ROOT, gateway_process, relay, secret_file
from transport.links.virtual_join import serve_radio

HINTS = ["tcp:127.0.0.1:1", "ble:"]  # nobody is at the first


class EdgeHome:
    """Commands of one edge whose configuration knows a radio and nothing else."""

    def __init__(self, folder: Path, radio: str) -> None:
        folder.mkdir()
        self._folder = folder
        self.environment = {
            **os.environ, "CAUSEWAY_HOME": str(folder / "home"), "NO_COLOR": "1",
            "CAUSEWAY_PASSPHRASE_FILE": secret_file(folder / "pass", "correct horse"),
        }
        (folder / "home").mkdir(mode=0o700)
        self._radio = radio
        self.configure("")

    def configure(self, endpoint: str) -> None:
        """`endpoint` in place of the invitation's; "" for that."""
        endpoints = json.dumps([endpoint] if endpoint else [])
        (self._folder / "home" / "config.toml").write_text(
            f'[relay]\nmodel = "small"\nendpoints = {endpoints}\n[bluetooth]\nradio = "{self._radio}"\n'
        )

    @contextlib.contextmanager
    def instead(self, radio: str, **environment: str) -> Iterator[None]:
        """Another radio, and environment, for a while."""
        before = self._radio, self.environment
        self._radio, self.environment = radio, {**self.environment, **environment}
        self.configure("")
        yield
        self._radio, self.environment = before
        self.configure("")

    async def run(self, *arguments: str, code: int = 0) -> Any:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from edge_client.cli import main; main()", *arguments, "--json", cwd=ROOT,
            env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
        assert process.returncode == code, err.decode()
        assert "Traceback" not in err.decode(), err.decode()
        return json.loads(out)


async def test_an_edge_joins_and_asks_by_radio_alone(tmp_path: Path) -> None:
    radio = tmp_path / "radio.sock"
    edge = EdgeHome(tmp_path / "edge", f"virtual:{radio}")
    passphrase = secret_file(tmp_path / "hop-pass", "hop pass")
    async with asyncio.timeout(300), MockProvider() as provider, contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(gateway_process(tmp_path / "gateway", provider.base_url))
        home = HopHome(tmp_path / "hop", Passphrase("hop pass"))
        await join_hop(home, await gateway.invite("hop/pi"), gateway.https)
        line = secret_file(tmp_path / "invitation", (await gateway.invite("edge/lap-1", *HINTS)).encode())
        refused = await edge.run("join", "--invitation-file", line, code=5)
        assert refused["error"]["fault"] == "link", "there is no radio yet"
        server = await serve_radio(radio, "2m", seed=1)
        stack.push_async_callback(server.close)
        _, ready = await stack.enter_async_context(relay(
            "hop", "serve", "--home", str(tmp_path / "hop"), "--passphrase-file", passphrase,
            "--listen", "ble", "--radio", f"virtual:{radio}",
        ))
        assert ready.endswith("listening on ble:\n")
        assert (await edge.run("join", "--invitation-file", line))["endpoints"] == HINTS
        for endpoint in ("", "sim:ble-1m@ble:"):
            edge.configure(endpoint)
            answer = await edge.run("ask", "--relay", "How fast does the pump run?")
            assert (answer["answer"], answer["via"]) == ("".join(WORDS), "spiffe://field.example/hop/pi")
            status = await edge.run("status")
            assert (status["endpoints"], status["identity"]["svid_valid"]) == ([endpoint] if endpoint else HINTS, True)
        assert provider.calls == 2
