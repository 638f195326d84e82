"""The public listener's configuration: what browsers need, and no page in the clear but at home."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.gateway.config import EXAMPLE, Public, parse
from relay.gateway.errors import ConfigError

BASE = EXAMPLE.format(trust_domain="field.example")
FOLDER = Path("/srv/gateway")
CERTIFICATE = 'cert_file = "public.pem"\nkey_file = "public.key"\n'


def read(listen: str | None, section: str | None) -> Public | None:
    text = BASE if listen is None else BASE.replace("[listen]\n", f'[listen]\npublic = "{listen}"\n')
    if section is not None:
        text = text.replace("[provider] ", f"[public]\n{section}\n[provider] ")
    return parse(text.encode(), FOLDER).public


def test_there_is_none_unless_asked_for() -> None:
    assert read(None, None) is None


def test_with_a_certificate_it_may_be_anywhere() -> None:
    assert read("0.0.0.0:443", 'origin = "https://gw.example"\n' + CERTIFICATE) == Public(
        ("0.0.0.0", 443), "https://gw.example", (FOLDER / "public.pem", FOLDER / "public.key")
    )


def test_behind_a_proxy_it_is_on_loopback_and_knows_what_browsers_see() -> None:
    assert read("127.0.0.1:8080", 'origin = "https://gw.example:8443"') == Public(
        ("127.0.0.1", 8080), "https://gw.example:8443", None
    )


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"])
def test_a_trial_on_this_machine_needs_no_certificate(origin: str) -> None:
    assert read("127.0.0.1:8080", f'origin = "{origin}"') == Public(("127.0.0.1", 8080), origin, None)
    assert read("127.0.0.1:0", None) == Public(("127.0.0.1", 0), None, None), "which port it is shows when it listens"


@pytest.mark.parametrize(("listen", "origin"), [
    ("127.0.0.1:8080", "http://127.0.0.1:8080"), ("localhost:80", "http://localhost"), ("[::1]:8080", "http://[::1]:8080"),
])
def test_on_this_machine_the_origin_may_be_left_out(listen: str, origin: str) -> None:
    public = read(listen, None)
    assert public is not None and public.origin == origin
    assert read(listen, f'origin = "{origin}"') == public


def test_the_example_s_lines_are_right_once_uncommented() -> None:
    lines = BASE.splitlines()
    starts = ("# public =", "# [public]", "# origin =", "# cert_file =", "# key_file =")
    wanted = [line for line in lines if line.startswith(starts)]
    assert len(wanted) == 5
    text = "\n".join(line.removeprefix("# ") if line in wanted else line for line in lines)
    assert parse(text.encode(), FOLDER).public == Public(
        ("0.0.0.0", 443), "https://gw.example", (FOLDER / "public.pem", FOLDER / "public.key")
    )


@pytest.mark.parametrize(("listen", "section", "told"), [
    (None, 'origin = "https://gw.example"', "public: there is no listener"),
    ("nowhere", None, "listen.public:"), ("0.0.0.0:8080", None, "listen.public: plain HTTP stays on loopback"),
    ("192.0.2.1:80", 'origin = "https://gw.example"', "listen.public: plain HTTP stays on loopback"),
    ("0.0.0.0:443", CERTIFICATE, "public.origin: this key is missing"),
    ("0.0.0.0:443", 'origin = "https://gw.example"\ncert_file = "a"', "public: set both"),
    ("127.0.0.1:443", 'origin = "https://gw.example"\nkey_file = "a"', "public: set both"),
    ("0.0.0.0:443", 'origin = "http://gw.example"\n' + CERTIFICATE, "public.origin: with a certificate"),
    ("127.0.0.1:443", 'origin = "http://localhost"\n' + CERTIFICATE, "public.origin: with a certificate"),
    ("127.0.0.1:80", 'origin = "http://gw.example"', "public.origin: without TLS"),
    ("127.0.0.1:80", 'origin = "http://127.0.0.2:8080"', "public.origin: without TLS"),
    ("127.0.0.1:80", 'orign = "https://gw.example"', "public.orign: there is no such key"),
    ("127.0.0.1:80", "origin = 3", "public.origin: expected"),
])
def test_every_mistake_names_its_key(listen: str | None, section: str | None, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(listen, section)
    assert str(error.value).startswith(told) and error.value.hint


@pytest.mark.parametrize("origin", [
    "https://gw.example/", "https://gw.example/hop", "https://gw.example:443", "http://localhost:80", "https://GW.example",
    "https://gw.example:0", "https://gw.example:08443", "https://gw.example:70000", "https://gw.example:", "gw.example",
    "https://", "wss://gw.example", "https://user@gw.example", "https://gw.example?x", "https://gw.example#x", "HTTPS://x",
    "https://gw.exämple", "https://gw example", "https://gw.example ", "https://-gw.example", "https://gw.example.",
    "https://gw.example; script-src *", "https://[::1", "null", "*", "",
])
def test_an_origin_is_written_as_browsers_write_it(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"public\.origin"):
        read("127.0.0.1:8080", f'origin = "{origin}"')


@given(st.text(st.characters(codec="ascii", exclude_characters='"\\'), max_size=40))
def test_no_origin_breaks_out_of_the_policy(text: str) -> None:
    """It becomes a part of a header."""
    try:
        public = read("127.0.0.1:8080", f'origin = "https://{text}"')
    except ConfigError:
        return
    assert public is not None and public.origin is not None
    assert not set(public.origin) & set(" ;,'\r\n\t*/\\") - set("/") and public.origin.count("/") == 2
