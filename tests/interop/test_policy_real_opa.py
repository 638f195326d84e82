"""OPA itself, with the example's rules in Rego, gives the 500 answers that Cedar gives. `scripts/test long` runs it."""

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.settings import OpaSettings, Rules
from tests.support.policy_questions import EXAMPLE, example, questions

OPA = os.environ.get("CAUSEWAY_OPA", "")
pytestmark = pytest.mark.opa


@pytest.fixture
def url() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = subprocess.Popen(
        [OPA, "run", "--server", "--addr", f"127.0.0.1:{port}", "--log-level", "debug",
         "--skip-version-check", str(EXAMPLE / "factory.rego")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    draining = threading.Thread(target=process.stderr.read)  # or a full pipe would stop it
    with process:
        try:
            assert any(b"Server initialized" in line for line in process.stderr), "OPA did not start"
            draining.start()
            yield f"http://127.0.0.1:{port}/v1/data/causeway/allow"
        finally:
            process.terminate()
            if draining.ident is not None:
                draining.join(20)


async def test_opa_and_cedar_answer_500_questions_alike(url: str) -> None:
    cedar, opa = Policy(example()), Policy(Rules(example().patterns, (), OpaSettings(url, 10.0, None), ()))
    asked = list(questions(500, seed=1))
    theirs = await asyncio.gather(*(opa.decide(one) for one in asked))
    await opa.close()
    assert [one for one in theirs if one.unavailable] == []
    assert [one.allowed for one in theirs] == [(await cedar.decide(one)).allowed for one in asked]
