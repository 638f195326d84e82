"""Hex in which a long run of one byte is short: `(00*16000)` stands for 16,000 zero bytes."""

import re

_RUN = re.compile(rb"(.)\1{99,}", re.DOTALL)
_SHORT = re.compile(r"\((..)\*(\d+)\)")


def shorten(data: bytes) -> str:
    out, at = [], 0
    for run in _RUN.finditer(data):
        out += [data[at : run.start()].hex(), f"({run[1].hex()}*{len(run[0])})"]
        at = run.end()
    return "".join([*out, data[at:].hex()])


def lengthen(text: str) -> bytes:
    return bytes.fromhex(_SHORT.sub(lambda run: run[1] * int(run[2]), text))
