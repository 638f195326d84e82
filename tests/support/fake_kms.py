"""AWS KMS for tests: moto behind a socket, so that what talks to it is a client with an endpoint, in any process."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest.mock import patch

import boto3
from botocore import xform_name
from botocore.exceptions import ClientError
from moto import mock_aws

REGION = "eu-central-1"
_BLOBS = ("Message", "Plaintext", "CiphertextBlob")


class FakeKms:
    """`refuses`: the code of the error that every call gets. `asked`: calls and their arguments. `silent`: no answer
    comes before `speak` is set.
    """

    def __init__(self, url: str, moto: Any) -> None:
        self.url, self.moto = url, moto
        self.refuses = ""
        self.silent = False
        self.speak = threading.Event()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def answer(self, operation: str, arguments: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for name in _BLOBS:
            if name in arguments:
                arguments[name] = base64.b64decode(arguments[name])
        self.asked.append((operation, arguments))
        if self.silent:
            self.speak.wait()
        if self.refuses:
            return 400, {"__type": self.refuses, "message": f"no: {arguments}"}
        try:
            answer = getattr(self.moto, xform_name(operation))(**arguments)
        except ClientError as error:
            return 400, {"__type": error.response["Error"]["Code"], "message": error.response["Error"]["Message"]}
        del answer["ResponseMetadata"]
        return 200, answer

    def aliases(self) -> set[str]:
        return {one["AliasName"].removeprefix("alias/") for one in self.moto.list_aliases()["Aliases"]}

    def delete(self, name: str) -> None:
        self.moto.delete_alias(AliasName=f"alias/{name}")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    assert isinstance(value, datetime)
    return value.timestamp()


class _Server(ThreadingHTTPServer):
    kms: FakeKms


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        status, answer = self.server.kms.answer(operation, json.loads(body))
        data = json.dumps(answer, default=_plain).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def fake_kms() -> Iterator[FakeKms]:
    """With credentials in the environment that are none of anybody's."""
    names = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nobody", "AWS_EC2_METADATA_DISABLED": "true",
             "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    with patch.dict(os.environ, names), mock_aws(), _Server(("127.0.0.1", 0), _Handler) as server:
        server.kms = FakeKms(f"http://127.0.0.1:{server.server_port}", boto3.client("kms", region_name=REGION))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.kms
        finally:
            server.kms.speak.set()
            server.shutdown()
            thread.join()
