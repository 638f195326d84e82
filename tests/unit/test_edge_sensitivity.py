"""What must not leave is found by form and checksum; ordinary prose is left alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.router import sensitivity
from edge_client.router.sensitivity import PERSONAL, SECRETS, kinds


@pytest.mark.parametrize(("text", "kind"), [
    ("-----BEGIN EC PRIVATE KEY-----\nMHc", "private key"),
    ("-----BEGIN PRIVATE KEY-----", "private key"),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----", "private key"),
    ("my key AKIAIOSFODNN7EXAMPLE is", "access key"),
    ("use sk-proj-abcdefghijklmnop1234", "access key"),
    ("ghp_" + "a1B2" * 9, "access key"),
    ("cw1" + "abcdefgh" * 12, "access key"),
    ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4", "token"),
    ("Authorization: Bearer abcdefghij0123456789XYZ", "token"),
    ("password: hunter22", "password"),
    ("the Password is Tr0ub4dor", "password"),
    ("API_KEY=abcd1234", "password"),
    ('{"secret": "abcd1234"}', "password"),
    ("write to jane.doe+x@mail.example.com please", "e-mail address"),
    ("call +49 (0) 89 1234-5678", "phone number"),
    ("call +14155550100", "phone number"),
    ("call (089) 1234 5678", "phone number"),
    ("call 415-555-0100 now", "phone number"),
    ("pay to DE89 3704 0044 0532 0130 00", "IBAN"),
    ("GB82WEST12345698765432", "IBAN"),
    ("NO9386011117947", "IBAN"),
    ("4222222222222", "card number"),
    ("bearer \t abcdefghij0123456789", "token"),
    ("an ACCESS_KEY is abcd", "password"),
    ("call +49123456.", "phone number"),
    ("DE89370400440532013000 IS MY IBAN 12", "IBAN"),
    ("card 4111 1111 1111 1111", "card number"),
    ("1 4111-1111-1111-1111 2027", "card number"),
    ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "card number"),
    ("4012888888881881", "card number"),
    ("export DB_PASSWORD=hunter22", "password"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "password"),
    ("OPENAI_API_KEY=abcd1234", "password"),
    ("client_secret: abcd1234", "password"),
    ("see postgres://app:s3cret@db.example.com/main", "password"),
    ("hf_" + "aB3" * 12, "access key"),
    ("ya29." + "a0" * 20, "access key"),
    ("my number is 078-05-1120", "identity number"),
    ("DNI 12345678Z", "identity number"),
    ("NIE X1234567-L", "identity number"),
    ("NIR 1 84 12 76 451 089 46", "identity number"),
    ("codice fiscale RSSMRA85T10A562S", "identity number"),
    ("passport number C01X00T47", "identity number"),
    ("Reisepass: C01X00T478", "identity number"),
    ("L898902C36UTO7408122F1204159ZE184226B<<<<<10", "identity number"),
])  # fmt: skip
def test_is_found(text: str, kind: str) -> None:
    assert kind in kinds(text)
    assert kind in SECRETS | PERSONAL


@pytest.mark.parametrize("text", [
    "What is the maximum working pressure of the P-101 pump?",
    "I forgot my password, what is the procedure?",
    "the password is required at login",
    "The private key stays on the device.",
    "GB82 WEST 1234 5698 7654 33 fails its checksum",
    "4111 1111 1111 1112 fails its checksum",
    "0000 0000 0000 0000",
    "Part 12345678901234 of drawing 2024-118",
    "From 2021-03-04 to 2022-05-06, 22 m3/h at 400 V and 7.5 kW",
    "version 10.15.7, address 10.0.0.7, time 14:05:33",
    "use @decorators and a+b@c",
    "The bearer of this letter is our colleague",
    "666-12-3456, 912-12-3456, 123-00-4567 and 123-45-0000 are nobody's",
    "12345678A has the wrong letter",
    "1 84 12 76 451 089 47 has the wrong check",
    "RSSMRA85T10A562T has the wrong check",
    "My passport is lost, what now? The passport number 7 is on page two",
    "go to https://example.com:8443/a@b and http://host/x:y@z",
    "The secret of 1984 is out",
    "the API key is required",
])  # fmt: skip
def test_is_left_alone(text: str) -> None:
    assert kinds(text) == ()


@given(st.integers(10**14, 10**15 - 1), st.integers(0, 9))
def test_a_card_is_one_only_with_the_right_last_digit(body: int, last: int) -> None:
    def luhn(number: str) -> bool:
        total = 0
        for place, digit in enumerate(map(int, reversed(number))):
            total += digit if place % 2 == 0 else (digit * 2 - 9 if digit > 4 else digit * 2)
        return total % 10 == 0

    number = f"{body}{last}"
    assert ("card number" in kinds(f"card {number} here")) == luhn(number)


@given(st.text(max_size=300))
def test_any_text_is_scanned_without_error(text: str) -> None:
    assert set(kinds(text)) <= SECRETS | PERSONAL


# What the patterns are made of, whole and cut, letters that are ASCII's in another case, and what may stand between.
_SAID = (
    "password passwort passwd passphrase passcode kennwort pwd secret client_secret api key api-key access_key token"
    " auth_token is : = not lost hunter22 bearer Bearer abcdefghij0123456789 eyJabcdefghij . .abcdefghij -----BEGIN"
    " PRIVATE KEY----- AKIAIOSFODNN7EXAMPLE sk- abcdefghijklmnop SG. ghp_ rk_live_ xoxa- https:// ab:// user : pw pw1 @"
    " jane.doe a mail. example.com +49 0049 (0) (089) 089 89 1234 5678 415- 555- 0100 00 DE89 3704 0044 0532 0130 00"
    " GB82WEST12345698765432 4111 1111 1111 1111 078-05-1120 12345678Z X1234567 -L 1 84 12 76 451 089 46"
    " RSSMRA85T10A562S"
    " passport Passport number no. C01X00T47 tax id ssn social security driver's licence \u017f\u017fn pa\u017fsport"
    " i\u0307 \u0130d card \u0131d to\u212aen \u212aEY PA\u017fSWORD \u0663\u0664\u0665 \u00e9"
    " L898902C36UTO7408122F1204159ZE184226B<<<<<10"
    " 7408122F1204159 < 2024-03-01 14:05 P-101"
)
_WORDS = _SAID.split()
texts = st.lists(
    st.sampled_from([*_WORDS, *(word.upper() for word in _WORDS)])
    | st.sampled_from(["", " ", "  ", "\n", "-", ".", "/", "_", "'", '"', "@", "x", "0", "7" * 9, "a" * 70])
    | st.text(max_size=4), max_size=24,
).flatmap(lambda parts: st.sampled_from(["", " "]).map(lambda between: between.join(parts)))


@settings(max_examples=400)
@given(texts)
def test_looking_only_where_it_may_be_finds_what_looking_everywhere_finds(text: str) -> None:
    everywhere = [
        rule.kind for rule in sensitivity._RULES if any(rule.check(match[0]) for match in rule.pattern.finditer(text))
    ]
    assert kinds(text) == tuple(dict.fromkeys(everywhere))


@pytest.mark.parametrize("text", [
    "pa\u017f\u017fword: hunter22", "api_to\u212aEN=abcd1234", "\u0130d card AB1234567", "pa\u017fsport C01X00T47",
])  # fmt: skip
def test_letters_that_are_ascii_in_another_case_hide_nothing(text: str) -> None:
    assert kinds(text) and kinds("\u00e9\u03a3 " + text)


@given(texts)
def test_no_character_is_looked_at_twice(text: str) -> None:
    """By one rule, however often what it looks near to stands there: so it is linear in the text."""
    folded = sensitivity._folded(text)
    assert len(folded) == len(text)
    for rule in sensitivity._RULES:
        last = 0
        for start, end in rule.places(folded if rule.folded else text):
            assert last <= start < end <= len(text) or text == ""
            last = end


@pytest.mark.parametrize("unit", [
    "a@a.", "1 ", "+1 ", "password: ", "eyJaaaaaaaaaa.", "DE89 ", "-----BEGIN A ", "a.b+", "0123-", "(01) ", "sk-",
    "123-45-", "passport ", "1 84 12 ", "ab://c:", "api_key ", "secret_access_", "SG.aaaaaaaaaaaaaaaa",
    "A<1", "ABCDEF12", "@", "://", "key", "key=", "bearer ", "12345678", "1234567<", "1-22-3", "(", "+",
    "\u0130d card ",
])
def test_hostile_repetition_ends(unit: str) -> None:
    """A pattern that is quadratic in the text would take half an hour for this; a linear one takes a moment."""
    kinds(unit * ((1 << 18) // len(unit)))
