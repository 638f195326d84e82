"""Bodies that are JSON, are none, or are what parsers disagree on; made here, each with what becomes of it.

A name begins as in Nicolas Seriot's suite for parsers: y (has to be taken), n (has to be refused),
    i (RFC 8259 leaves it
open: we decided, and say so here). `code` is that of the refusal, "" where there is none.
"""

from collections.abc import Iterator
from typing import NamedTuple

HEAD = b'{"model":"small","messages":[{"role":"user","content":"hello"}]'
PLAIN = HEAD + b"}"
DEPTH = 32  # levels that are taken


class Case(NamedTuple):
    name: str
    body: bytes
    code: str = ""


def holding(value: bytes) -> bytes:
    """A request with a JSON value in a member that nobody looks into."""
    return HEAD + b',"metadata":' + value + b"}"


def cases() -> list[Case]:
    made = [
        *_numbers(), *_strings(), *_structure(), *_encodings(), *_whitespace(), *_twice(), *_depth(), *_beginnings(),
    ]
    assert len({case.name for case in made}) == len(made)
    assert all(case.name[0] in "yni" and (case.name[0] != "y" or not case.code) for case in made)
    assert all(case.code for case in made if case.name[0] == "n")
    return made


def _numbers() -> Iterator[Case]:
    good = ["0", "-0", "7", "-7", "10", "1.5", "-1.5", "0.0", "1e5", "1E5", "1e+5", "1e-5", "0e0", "1.5E-3",
        "123456789012"]
    bad = [
        "01", "-01", "+1", "-", "--1", "1.", "-1.", ".5", "-.5", "1e", "1e+", "1E-", "1.e1", "0.e1", "1ee1", "1e1.5",
        "1.2.3",
        "0x1F", "0b1", "0o7", "1_000", "1,000.5e", "1 000", "- 1", "1f", "1L", "1n", "NaN", "-NaN", "nan", "Infinity",
        "-Infinity", "inf", "\uff11", "\u0661", "1\u0660", "1/2", "1+1", "(1)", "1e\uff11", "00", "0-", "1-",
    ]
    for text in good:
        yield Case(f"y_number_{text}", holding(text.encode()))
    for text in bad:
        yield Case(f"n_number_{text!a}", holding(text.encode()), "malformed_json")
    for name, text in {
        "most of 64 bits": "18446744073709551615", "least of 64 bits": "-9223372036854775808",
        "over 2^53": "9007199254740993", "a double's most": "1.7976931348623157e308", "too near zero": "1e-999",
        "a whole one": "3.0", "17 digits": "0.30000000000000004",
    }.items():
        yield Case(f"i_number_{name}", holding(text.encode()))
    for name, text in {
        "over 64 bits": "18446744073709551616", "under 64 bits": "-9223372036854775809", "5,000 digits": "9" * 5_000,
        "over a double": "1e999", "under a double": "-1e999", "long exponent": "1e" + "9" * 100,
        "over 64 characters": "0." + "3" * 63,
    }.items():
        yield Case(f"i_number_{name}", holding(text.encode()), "malformed_json")


def _strings() -> Iterator[Case]:
    for letter in '"\\/bfnrt':
        yield Case(f"y_string_escaped {letter}", holding(f'"\\{letter}"'.encode()))
    for name, text in {
        "empty": '""', "two bytes": '"\u00e9"', "four bytes": '"\U0001f600"', "pair": r'"\ud83d\ude00"',
        "line end": '"\u2028"',
        "delete": '"\x7f"', "no character": '"\uffff"', "escaped upper": r'"\u00C9"', "last": '"\U0010ffff"',
        "escaped backslash": r'"\\u003a"', "slash": '"/"', "comment": '"/* // # */"', "brackets": '"[{]}[[[["',
        "comma and colon": '",:,:"',
    }.items():
        yield Case(f"y_string_{name}", holding(text.encode()))
    yield Case("i_string_escaped zero", holding(rb'"\u0000"'))
    for value in range(32):
        yield Case(f"n_string_control {value}", holding(b'"' + bytes([value]) + b'"'), "malformed_json")
    for letter in "acdeghijklmopqsvwxyzABFNRTU0179'`$ ":
        yield Case(f"n_string_escape {letter}", holding(f'"\\{letter}041"'.encode()), "malformed_json")
    for name, text in {
        "short escape": r'"\u12"', "no hex": r'"\u00zz"', "open": '"abc', "open escape": '"abc\\',
        "open unicode": r'"\u',
        "single quotes": "'abc'", "backticks": "`abc`", "no quotes": "abc", "two": '"a""b"', "joined": '"a"+"b"',
        "curly": "\u201ca\u201d",
    }.items():
        yield Case(f"n_string_{name}", holding(text.encode()), "malformed_json")
    for name, text in {
        "high alone": r'"\ud83d"', "low alone": r'"\ude00"', "turned round": r'"\ude00\ud83d"',
        "high twice": r'"\ud83d\ud83d"',
        "high and letter": r'"\ud83dx"', "half in a name": r'{"\ud83d":1}',
    }.items():
        yield Case(f"i_string_surrogate {name}", holding(text.encode()), "malformed_json")


def _structure() -> Iterator[Case]:
    for text in ["null", "true", "false", "[]", "{}", "[[]]", "[{}]", '{"":0}', '{"a":{"b":[1,2,{"c":null}]}}',
        "[1,2]"]:
        yield Case(f"y_structure_{text}", holding(text.encode()))
    for text in [
        "[1,]", "[,1]", "[1,,2]", "[,]", "[1 2]", "[1:2]", "[", "]", "[1", "[[]", "[]]", "[}", "{]", "{", "}",
        '{"a":1,}',
        "{,}", '{"a"}', '{"a":}', '{"a" 1}', '{"a",1}', "{a:1}", "{'a':1}", "{1:1}", "{null:1}", "{[]:1}",
        '{"a":1 "b":2}',
        '{"a":1;"b":2}', '{"a"::1}', '{:1}', '{"a":1', '{"a"', "", ",", ":", "True", "NULL", "nul", "tru", "truee",
        "none",
        "undefined", "[1]//", "[1]/**/", "/**/1", "#1", "--", "<a/>", "*", "&a", "@", "...", "[...]", "0;", "(0)",
        "function(){}",
        "new Date()", "a:1", "- a", "1\n2", "\\u0031", "\\", "$", "{}{}", "[][]",
    ]:  # fmt: skip
        yield Case(f"n_structure_{text!a}", holding(text.encode()), "malformed_json")
    for text in ["[]", "0", '"small"', "null", "true", "[" + PLAIN.decode() + "]", '"' + PLAIN.decode().replace('"',
        '\\"') + '"']:
        yield Case(f"n_top_{text[:12]}", text.encode(), "malformed_json")
    for name, tail in {"brace": b"}", "object": b"{}", "comma": b",", "letter": b"x", "zero": b"\0", "comment": b"//",
        "again": PLAIN,
                       "line": b"\n" + PLAIN, "quote": b'"', "high": b"\xff"}.items():
        yield Case(f"n_behind_{name}", PLAIN + tail, "malformed_json")
    for name, head in {"comment": b"//\n", "prefix": b")]}',\n", "equals": b"x=", "record": b"\x1e", "zero": b"\0",
        "parenthesis": b"("}.items():
        yield Case(f"n_before_{name}", head + PLAIN, "malformed_json")
    for name, body in {"nothing": b"", "blank": b" \n\t\r", "zeros": bytes(16), "form": b"model=small&messages=hello",
        "event": b"data: " + PLAIN,
                       "yaml": b"model: small\n", "length": b"50\r\n" + PLAIN}.items():
        yield Case(f"n_instead_{name}", body, "malformed_json")


def _encodings() -> Iterator[Case]:
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig", "utf-7"):
        body = PLAIN.decode().encode(name) if name != "utf-7" else b"+AHs-" + PLAIN[1:]
        yield Case(f"n_encoding_{name}", body, "malformed_json")
    for name, data in {
        "latin-1": b"\xe9", "continuation": b"\x80", "overlong 2": b"\xc0\xaf", "overlong 3": b"\xe0\x80\xaf",
        "cut 2": b"\xc3",
        "overlong 4": b"\xf0\x80\x80\xaf", "surrogate": b"\xed\xa0\x80", "pair": b"\xed\xa0\xbd\xed\xb8\x80",
        "cut 3": b"\xe2\x82",
        "over the last": b"\xf4\x90\x80\x80", "five bytes": b"\xf8\x88\x80\x80\x80", "fe": b"\xfe", "ff": b"\xff",
    }.items():
        yield Case(f"n_utf8_{name}", holding(b'"' + data + b'"'), "malformed_json")
        yield Case(f"n_utf8_{name} in a name", holding(b'{"' + data + b'":1}'), "malformed_json")


def _whitespace() -> Iterator[Case]:
    for name, blank in {"spaces": b"  ", "lines": b"\n", "returns": b"\r\n", "tabs": b"\t"}.items():
        spread = PLAIN.replace(b":", blank + b":" + blank).replace(b",", blank + b"," + blank)
        yield Case(f"y_whitespace_{name}", blank + spread + blank)
    for name, blank in {
        "vertical tab": b"\x0b", "form feed": b"\x0c", "no break": b"\xc2\xa0", "line": b"\xe2\x80\xa8",
        "ideographic": b"\xe3\x80\x80",
        "zero width": b"\xe2\x80\x8b", "next line": b"\xc2\x85", "mark": b"\xef\xbb\xbf", "backspace": b"\x08",
    }.items():
        yield Case(f"n_whitespace_{name}", HEAD + b"," + blank + b'"metadata":0}', "malformed_json")


def _twice() -> Iterator[Case]:
    for name, text in {
        "plain": '{"a":1,"a":1}', "escaped": '{"a":1,"\\u0061":2}', "empty": '{"":1,"":2}',
        "far apart": '{"a":1,"b":{"a":1},"a":2}',
        "deep": '[[{"b":[{"a":1,"a":2}]}]]', "colons": '{"a:b":":","a:b":"::"}',
        "hidden": '{"a":1,"a":"\\u003a\\u003A"}',
        "hidden more": '{"a":"\\u003a","a":1}', "hidden in the name": '{"\\u003a":1,":":1}',
        "three": '{"a":1,"a":1,"a":1}',
        "others": '{"a":":","b":[":"],"a":":"}', "a colon lost": '{"a":":","a":1}',
        "many": '{"a":{"x":1,"y":2},"a":"::"}',
    }.items():
        yield Case(f"n_twice_{name}", holding(text.encode()), "ambiguous_json")
    for name, more in {
        "a field": b',"model":"small"}', "by case": b',"Model":"small"}', "by escape": b',"mod\\u0065l":"small"}',
        "by fold": ',"me\u017f\u017fages":[]}'.encode(), "unknown ones": b',"x":1,"X":2}',
        "stream": b',"stream":true,"STREAM":false}',
    }.items():
        yield Case(f"n_twice_top {name}", HEAD + more, "ambiguous_json")
    for name, text in {
        "different levels": '{"a":{"a":{"a":1}}}', "neighbours": '[{"a":1},{"a":1}]', "case": '{"a":1,"A":2}',
        "escaped colon": '{"a":"\\u003a","b":"\\u003A"}', "colons": '{"a":":::","b:":"\\\\u003a"}',
        "normal forms": '{"\u00e9":1,"e\u0301":2}',
    }.items():
        yield Case(f"y_once_{name}", holding(text.encode()))


def _depth() -> Iterator[Case]:
    for name, opening, closing in (("arrays", b"[", b"]"), ("objects", b'{"a":', b"}")):
        inner = b"0" if name == "objects" else b""
        for levels in (DEPTH - 1, DEPTH, DEPTH + 1, 500, 100_000):
            body = holding(opening * levels + inner + closing * levels)
            taken = levels < DEPTH  # the body itself is the first
            yield Case(f"{'y' if taken else 'n'}_depth_{name} {levels}", body, "" if taken else "json_too_deep")
    yield Case("n_depth_never closed", HEAD + b',"metadata":' + b"[" * 100_000, "json_too_deep")
    yield Case("y_depth_in a string", holding(b'"' + b"[{" * 5_000 + b'"'))
    yield Case("n_parts_many", holding(b"[" + b"[]," * 100_000 + b"[]]"), "json_too_deep")


def _beginnings() -> Iterator[Case]:
    """What a cut connection leaves."""
    for length in range(1, len(PLAIN)):
        yield Case(f"n_cut_{length}", PLAIN[:length], "malformed_json")
