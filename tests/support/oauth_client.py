"""A client with a key, for tokens bound to it: assertions and proofs by hand, so that a test gets any part wrong."""

import base64
import json
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

from tests.support.dpop_page import ath, jwk_of, jws, without
from tests.support.https_client import CHAT, Gateway, Workload
from transport.primitives import SigningKey, random_bytes

TOKEN = "/oauth/token"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> tuple[int, str]:
        """Status and code, of the token endpoint or of the others."""
        error = self.body["error"]
        return self.status, error if isinstance(error, str) else error["code"]


@dataclass
class TokenClient:
    """`key` signs assertions and proofs: the device key, or with `chain` that of an SVID."""

    workload: Workload
    key: SigningKey
    chain: tuple[bytes, ...] = ()
    nonce: str = ""
    count: int = field(default=0)

    @classmethod
    async def joined(cls, gateway: Gateway, path: str = "workload/report-1") -> "TokenClient":
        workload = await Workload.joined(gateway, path)
        return cls(workload, workload.device_key)

    @property
    def url(self) -> str:
        return self.workload.gateway.url

    def by_svid(self) -> "TokenClient":
        """The same client with its SVID's key."""
        svid = self.workload.svid
        assert svid is not None
        return TokenClient(self.workload, svid.key, svid.chain)

    def assertion(self, header: dict[str, Any] | None = None, *, key: SigningKey | None = None, **claims: Any) -> str:
        shown = {"x5c": [base64.b64encode(one).decode() for one in self.chain]} if self.chain else {}
        head = without({"alg": "ES256", "typ": "JWT"} | shown | (header or {}))
        said = {
            "iss": self.workload.id, "sub": self.workload.id, "aud": self.url + TOKEN, "exp": int(time.time()) + 50,
            "jti": random_bytes(12).hex(), "iat": int(time.time()),
        }
        return jws(head, without(said | claims), key or self.key)

    def proof(
        self, path: str = CHAT, method: str = "POST", *, token: str | None = None, key: SigningKey | None = None,
        **claims: Any,
    ) -> str:
        key = key or self.key
        said = {
            "jti": random_bytes(12).hex(), "htm": method, "htu": self.url + path, "iat": int(time.time()),
            "nonce": self.nonce,
        }
        bound = {} if token is None else {"ath": ath(token)}
        return jws({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk_of(key)}, without(said | bound | claims), key)

    async def send(
        self, path: str, *, method: str = "POST", data: Any = None, headers: dict[str, str] | None = None,
        with_svid: bool = False, svid: Any = None,
    ) -> Answer:
        """By a connection without certificate, unless one is asked for. Takes the nonce of the answer."""
        async with self.workload.client(svid, bare=not (with_svid or svid)) as http, http.request(
            method, path, data=data, headers=headers
        ) as response:
            self.nonce = response.headers.get("DPoP-Nonce", self.nonce)
            return Answer(response.status, json.loads(await response.read()), dict(response.headers))

    async def post_form(
        self, form: Any, *, proof: str | None = None, headers: dict[str, str] | None = None, **how: Any
    ) -> Answer:
        data = form if isinstance(form, str | bytes) else urllib.parse.urlencode(form)
        sent = {"Content-Type": "application/x-www-form-urlencoded"} | ({"DPoP": proof} if proof else {})
        return await self.send(TOKEN, data=data, headers=sent | (headers or {}), **how)

    async def renewed_nonce(self) -> None:
        """As each client begins: a proof without one is refused, and the refusal has it."""
        answer = await self.post_form(self.form(), proof=self.proof(TOKEN))
        assert answer.error == (400, "use_dpop_nonce")

    def form(self, assertion: str | None = None, **fields: str) -> dict[str, str]:
        return without({
            "grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion or self.assertion(),
        } | fields)

    async def given(self, **how: Any) -> Answer:
        """A token for this client's key."""
        if not self.nonce:
            await self.renewed_nonce()
        return await self.post_form(self.form(), proof=self.proof(TOKEN), **how)

    async def token(self) -> str:
        answer = await self.given()
        assert answer.status == 200 and answer.body["token_type"] == "DPoP", answer
        return str(answer.body["access_token"])

    async def certificate_token(self, svid: Any = None) -> str:
        """A token for the certificate of the connection."""
        answer = await self.post_form({"grant_type": "client_credentials"}, with_svid=True, svid=svid)
        assert answer.status == 200 and answer.body["token_type"] == "Bearer", answer
        return str(answer.body["access_token"])

    async def ask(
        self, body: bytes, token: str, *, scheme: str = "DPoP", proof: str | None = None, **how: Any
    ) -> Answer:
        """Asks with a token, and with a good proof unless the scheme is another one."""
        headers = {"Authorization": f"{scheme} {token}", "Content-Type": "application/json"}
        if scheme == "DPoP":
            headers["DPoP"] = proof or self.proof(token=token)
        return await self.send(CHAT, data=body, headers=headers, **how)
