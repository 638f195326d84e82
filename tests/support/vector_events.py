"""Answers in entries of events (SPEC.md section 7): what they stand for, and what is to be refused."""

from tests.support.vector_hex import shorten


def events() -> list[dict[str, str]]:
    """Answers in entries: with `plain`, what they stand for; without, not one."""
    taken: dict[str, tuple[bytes, bytes]] = {
        "nothing": (b"", b""),
        "an empty piece": (b"\x00", b""),
        "a piece": (b"\x0cabc", b"abc"),
        "text before any prefix": (b"\x0dabc", b"abc"),
        "a prefix, and two texts": (b"\x0a\x02<b >" + b"\x05x" + b"\x01", b"<bx ><b >"),
        "a prefix replaced by nothing": (b"\x06\x00<" + b"\x02\x00" + b"\x05x", b"x"),
        "a piece of 65,536 bytes": (b"\x80\x80\x10" + bytes(65_536), bytes(65_536)),
        "prefix and suffix of 1,024 bytes": (b"\x82\x10\x80\x04" + b"<" * 512 + b">" * 512 + b"\x05x",
                                             b"<" * 512 + b"x" + b">" * 512),
    }
    refused: dict[str, bytes] = {
        "kind 3": b"\x03",
        "kind 3 behind a piece": b"\x04x\x03",
        "a varint that is not the shortest": b"\x84\x00x",
        "a varint of four bytes": b"\x80\x80\x80\x01",
        "a piece of 65,537 bytes": b"\x84\x80\x10" + bytes(65_537),
        "a text of 65,537 bytes": b"\x85\x80\x10" + bytes(65_537),
        "prefix and suffix of 1,025 bytes": b"\x82\x10\x81\x04" + b"<" * 512 + b">" * 513,
        "a second varint that is not the shortest": b"\x06\x80\x00<",
        "an end within a varint": b"\x80",
        "an end within a piece": b"\x0cab",
        "an end within a suffix": b"\x0a\x02<b ",
    }
    return [
        *({"what": what, "entries": shorten(data), "plain": shorten(plain)} for what, (data, plain) in taken.items()),
        *({"what": what, "entries": shorten(data)} for what, data in refused.items()),
    ]
