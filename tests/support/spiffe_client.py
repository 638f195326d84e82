"""A workload as others write them: a program that uses the `spiffe` client, unchanged, and says what it gets.

Run as `python spiffe_client.py SOCKET`; takes a line of JSON at a time, [operation, argument...], and answers with one.
`watch` goes on by itself: a line for each X.509 context that is pushed, and for an error.
"""

import base64
import json
import sys
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from spiffe import WorkloadApiClient
from spiffe.spiffe_id.spiffe_id import SpiffeId
from spiffe.svid.x509_svid import X509Svid


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


def x509(svid: X509Svid) -> dict[str, Any]:
    public = svid.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "id": str(svid.spiffe_id), "serial": str(svid.leaf.serial_number),
        "chain": [base64.b64encode(one.public_bytes(Encoding.DER)).decode() for one in svid.cert_chain],
        "spki": base64.b64encode(public).decode(),
        "key": base64.b64encode(
            svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        ).decode(),
    }


def answer(client: WorkloadApiClient, operation: str, *given: Any) -> dict[str, Any]:
    match operation:
        case "x509":
            return {"svids": [x509(one) for one in client.fetch_x509_svids(timeout=60)]}
        case "jwt":
            subject = SpiffeId(given[1]) if len(given) > 1 else None
            svids = client.fetch_jwt_svids(audience=set(given[0]), subject=subject, timeout=60)
            return {"svids": [
                {"id": str(one.spiffe_id), "token": one.token, "expiry": one.expiry, "audience": sorted(one.audience)}
                for one in svids
            ]}
        case "validate":
            svid = client.validate_jwt_svid(given[0], given[1], timeout=60)
            return {"id": str(svid.spiffe_id), "expiry": svid.expiry}
        case "bundles":
            x509_bundles = client.fetch_x509_bundles(timeout=60)
            jwt_bundles = client.fetch_jwt_bundles(timeout=60)
            return {
                "x509": {
                    str(one.trust_domain): [
                        base64.b64encode(root.public_bytes(Encoding.DER)).decode() for root in one.x509_authorities
                    ] for one in x509_bundles.bundles
                },
                "jwt": {str(one.trust_domain): sorted(one.jwt_authorities) for one in jwt_bundles.bundles},
            }
        case "watch":
            client.stream_x509_contexts(
                lambda context: say(pushed=[x509(one) for one in context.x509_svids]),
                lambda error: say(error=str(error)), retry_connect=bool(given and given[0]),
            )
            return {}
    raise ValueError(operation)


def main() -> None:
    client = WorkloadApiClient(f"unix://{sys.argv[1]}")
    for line in sys.stdin:
        try:
            told = answer(client, *json.loads(line))
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"}
        if told:
            say(**told)


if __name__ == "__main__":
    main()
