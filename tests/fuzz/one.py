"""Fuzzes one target with atheris: `python -m tests.fuzz.one TARGET [libFuzzer's arguments]`. See tests/fuzz/run.py."""

import sys

import atheris

with atheris.instrument_imports(include=["transport", "store", "relay.gateway.trace", "relay.gateway.upstream"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv[1]]
    target.run(b"")  # makes the shared world outside the measured time
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
