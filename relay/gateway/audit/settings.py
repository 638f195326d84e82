"""What gateway.toml says of the audit."""

from typing import Final, Literal

from msgspec import Struct


class Audit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`sync`: "each" waits for the disk at each record, "group" not at those of requests that pass (see `log`)."""

    sync: Literal["group", "each"] = "group"


AUDIT: Final = Audit()
