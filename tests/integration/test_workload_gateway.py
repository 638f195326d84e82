"""A gateway as it is started, a program of another make that gets its identity there, and what it does with it."""

import asyncio
import base64
import json
import os
import re
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.gateway.config import parse
from relay.gateway.control import call
from relay.gateway.errors import ConfigError
from tests.support.gateway_lab import audit_lines
from tests.support.mock_provider import MockProvider
from tests.support.relay_process import CONFIG, ROOT, Gateway, gateway_process
from tests.support.workload_lab import spiffe_id, stock_client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who calls")
SECTIONS = """
[[allow]]
id = "/workload/*"
models = ["small"]
[workload_api]
socket = "w.sock"
[[workload]]
id = "/workload/reports"
uid = {uid}
"""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with (
        MockProvider() as provider,
        gateway_process(tmp_path / "g", provider.base_url, more=SECTIONS.format(uid=os.getuid())) as gateway,
    ):
        yield gateway


def context(folder: Path, svid: dict[str, Any], roots: list[str]) -> ssl.SSLContext:
    """As any program would make it of what the client library gives: files in PEM."""

    def pem(kind: str, data: str) -> str:
        return f"-----BEGIN {kind}-----\n{data}\n-----END {kind}-----\n"

    (folder / "key.pem").write_text(pem("PRIVATE KEY", svid["key"]))
    (folder / "chain.pem").write_text("".join(pem("CERTIFICATE", one) for one in svid["chain"]))
    made = ssl.create_default_context(cadata="".join(pem("CERTIFICATE", one) for one in roots))
    made.check_hostname = False  # the server's name is its SPIFFE ID
    made.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    return made


async def ask(gateway: Gateway, tls: ssl.SSLContext) -> int:
    body = {"model": "small", "messages": [{"role": "user", "content": "hello"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{gateway.https}/v1/chat/completions", json=body, ssl=tls) as answer,
    ):
        await answer.read()
        return answer.status


async def test_a_workload_asks_with_its_svid_until_it_is_revoked(gateway: Gateway, tmp_path: Path) -> None:
    async with stock_client(gateway.folder / "w.sock") as client:
        (svid,) = (await client.ask("x509"))["svids"]
        (roots,) = (await client.ask("bundles"))["x509"].values()
        tls = context(tmp_path, svid, roots)
        assert await ask(gateway, tls) == 200
        (device,) = (await call(gateway.folder, "devices", {}))["devices"]
        assert (device["id"], device["source"], device["status"]) == (spiffe_id("reports"), "workload", "active")
        async with (
            aiohttp.ClientSession() as session, session.get(f"{gateway.https}/v1/bundle", ssl=tls) as answer,
        ):
            bundle = await answer.json()
        (token,) = (await client.ask("jwt", ["elsewhere"]))["svids"]
        head = json.loads(base64.urlsafe_b64decode(token["token"].split(".")[0] + "=="))
        assert head["kid"] in {one["kid"] for one in bundle["keys"] if one["use"] == "jwt-svid"}
        assert len([one for one in bundle["keys"] if one["use"] == "x509-svid"]) == len(roots)
        assert bundle["spiffe_sequence"] > bundle["sequence"]

        await client.say("watch", False)
        assert len((await client.hear())["pushed"]) == 1
        await call(gateway.folder, "revoke", {"who": "workload/reports", "reason": "test"})
        assert "PERMISSION_DENIED" in (await client.hear())["error"]
        assert await ask(gateway, tls) == 401 or await ask(gateway, tls) == 403
        assert "PERMISSION_DENIED" in (await client.ask("x509"))["error"]
        await call(gateway.folder, "reinstate", {"who": "workload/reports"})
        assert await ask(gateway, tls) in (401, 403)  # of before
        (again,) = (await client.ask("x509"))["svids"]
        assert await ask(gateway, context(tmp_path, again, roots)) == 200
    events = [line["event"] for line in audit_lines(gateway.folder / "audit.jsonl")]
    assert events.count("attested.issued") == 2
    assert "workload.served" in events


async def test_the_example_of_the_documentation_works(gateway: Gateway) -> None:
    """docs/WORKLOADS.md's program, word for word but for the socket."""
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "docs" / "WORKLOADS.md").read_text())
    program = program.replace("unix:///run/causeway/workload.sock", f"unix://{gateway.folder}/w.sock")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    told, failed = await process.communicate()
    assert told.decode().split() == [spiffe_id("reports")] * 2, failed.decode()


def test_the_configuration_of_the_documentation_is_one() -> None:
    (sections,) = re.findall(r"(?ms)^```toml\n(.*?)^```$", (ROOT / "docs" / "WORKLOADS.md").read_text())
    digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    text = CONFIG.format(base_url="http://127.0.0.1:1/v1") + sections.replace("9f86d08…", digest)
    config = parse(text.encode(), ROOT)
    assert config.workload_socket == Path("/run/causeway/workload.sock")
    (entry,) = config.workloads
    assert (entry.id, entry.uid, entry.path, entry.sha256) == ("/workload/reports", 1_001, "/usr/bin/reports", digest)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ('[[workload]]\nid = "/workload/a"\nuid = 1', "workload: there is no socket"),
        ("[workload_api]", "workload_api.socket"),
        ('[workload_api]\nsocket = ""', "workload_api.socket"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a"', "uid"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/edge/a"\nuid = 1', "id"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a/"\nuid = 1', "workload: not a SPIFFE ID"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/../a"\nuid = 1', "workload: not a SPIFFE ID"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a"\nuid = -1', "uid"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a"\nuid = 1\npath = "bin/a"', "path"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a"\nuid = 1\nsha256 = "AB"', "sha256"),
        ('[workload_api]\nsocket = "s"\n[[workload]]\nid = "/workload/a"\nuid = 1\ngid = 1', "gid"),
    ],
)
def test_what_a_configuration_gets_wrong_is_named(sections: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse((CONFIG.format(base_url="http://127.0.0.1:1/v1") + sections).encode(), ROOT)
    assert named in str(error.value)
