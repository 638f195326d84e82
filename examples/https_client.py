"""Asks a gateway by plain HTTPS, with the identity that its Workload API gives to this program. See docs/HTTPS.md.

    SPIFFE_ENDPOINT_SOCKET=unix:///run/causeway/workload.sock \
        python examples/https_client.py https://127.0.0.1:8443 gpt-4o-mini "How do I prime the pump?"

Needs the package `spiffe` and nothing else. With --token it asks by an access token in the place of the bare SVID.
"""

import argparse
import json
import ssl
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient


def tls_context() -> ssl.SSLContext:
    """Shows this program's SVID, and takes a gateway of its trust domain for the server, whatever its host is called.

    An SVID lives for an hour at most: make another context in time.
    """
    with WorkloadApiClient() as client, tempfile.TemporaryDirectory() as folder:
        svid, place = client.fetch_x509_svid(), Path(folder)
        bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        svid.save(place / "chain.pem", place / "key.pem", Encoding.PEM)
        bundle.save(place / "roots.pem", Encoding.PEM)
        context = ssl.create_default_context(cafile=place / "roots.pem")
        context.load_cert_chain(place / "chain.pem", place / "key.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who the server is, its SPIFFE ID says:
    gateways = f"spiffe://{svid.spiffe_id.trust_domain}/gateway/"

    class Connection(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            (kind, name), *others = (self.getpeercert() or {}).get("subjectAltName", (("", ""),))
            if others or kind != "URI" or not name.startswith(gateways):
                raise ssl.SSLCertVerificationError("the server is not the gateway")

    context.sslsocket_class = Connection
    return context


def post(tls: ssl.SSLContext, url: str, body: bytes, headers: dict[str, str]) -> Any:
    if not url.startswith("https://"):
        raise SystemExit("the gateway's address begins with https://")
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers), context=tls)  # noqa: S310
    except urllib.error.HTTPError as refused:  # its body says why: OpenAI's form, or OAuth's
        raise SystemExit(f"{refused.code}: {refused.read().decode()}") from None


def token(tls: ssl.SSLContext, gateway: str) -> str:
    """An access token for ten minutes, of use with this SVID alone."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with post(tls, f"{gateway}/oauth/token", b"grant_type=client_credentials", form) as answer:
        return str(json.load(answer)["access_token"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Asks a model by way of a Causeway gateway.")
    parser.add_argument("gateway", help="https://HOST:PORT")
    parser.add_argument("model")
    parser.add_argument("question")
    parser.add_argument("--token", action="store_true", help="by an access token")
    given = parser.parse_args()
    tls = tls_context()
    headers = {"Content-Type": "application/json"}
    if given.token:
        headers["Authorization"] = f"Bearer {token(tls, given.gateway)}"
    body = {"model": given.model, "stream": True, "messages": [{"role": "user", "content": given.question}]}
    with post(tls, f"{given.gateway}/v1/chat/completions", json.dumps(body).encode(), headers) as answer:
        for line in answer:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                event = json.loads(line[6:])
                for choice in event.get("choices", ()):
                    print(choice["delta"].get("content") or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
