"""Examples in the help of each command, and the exit codes in that of `edge`. A test parses every line."""

from typing import Final

import typer

from edge_client.commands.terminal import EXIT_CODES

__all__ = ["EXAMPLES", "add_examples"]

EXAMPLES: Final[dict[str, tuple[str, ...]]] = {
    "": ("edge setup", 'edge ask "What is the pressure of pump P-101?"', "edge chat"),
    "setup": ("edge setup", "edge setup --invitation-file - --folder manuals --unlock keyring < invitation"),
    "ask": (
        'edge ask "How often is the strainer cleaned?"', 'cat log | edge ask "What failed?"',
        'edge ask --relay --model gpt-4o-mini --json "Explain the tides."',
    ),
    "chat": ("edge chat", "edge chat --local --no-documents", "edge chat < questions"),
    "explain": ('edge explain "Prove that there are infinitely many primes."', "edge explain --jsonl prompts.jsonl"),
    "ingest": ("edge ingest manuals report.pdf", "edge ingest --label local-only contracts"),
    "search": ('edge search "relief valve"', "edge search --top 10 --json strainer",
               "edge search --file manuals --since 2026-01-31 strainer"),
    "serve": ("edge serve", "edge serve --port 0 --no-store"),
    "join": ("edge join", "edge join --invitation-file invitation --hop tcp:10.0.0.7:7443", "edge join --tpm"),
    "pair": ("edge pair", "edge pair --minutes 30 --name 'van 3'", "edge pair --stop"),
    "status": ("edge status", "edge status --check --json"),
    "documents": ("edge documents", "edge documents --collection default --json"),
    "documents forget": ("edge documents forget manuals/old.pdf",),
    "documents label": ("edge documents label contracts local-only",),
    "documents reembed": ("edge documents reembed", "edge documents reembed --collection default --json"),
    "store keyring": ("edge store keyring on", "edge store keyring off"),
    "store tpm": ("edge store tpm on", "edge store tpm off"),
    "store passphrase": ("edge store passphrase on", "edge store passphrase off"),
    "store check": ("edge store check", "edge store check --json"),
    "store backup": ("edge store backup /media/stick", "edge store backup store.backup --passphrase"),
    "store restore": ("edge store restore store.backup", "edge store restore /media/stick/store.backup --replace"),
    "store rekey": ("edge store rekey",),
    "store wipe": ("edge store wipe", "edge store wipe --yes"),
    "store lock": ("edge store lock",),
    "store unlock": ("edge store unlock",),
    "outbox": ("edge outbox", "edge outbox --json"),
    "outbox show": ("edge outbox show 1a2b3c4d",),
    "outbox retry": ("edge outbox retry 1a2b",),
    "outbox cancel": ("edge outbox cancel 1a2b",),
    "models install": ("edge models install",),
    "models add": ("edge models add ~/models/qwen.gguf --name qwen",),
    "models list": ("edge models list", "edge models list --json"),
    "models remove": ("edge models remove qwen",),
}
_CAUSES: Final = {
    "user": "what was given cannot be used", "identity": "not joined, or a certificate is refused",
    "link": "no way to the gateway", "policy": "not allowed, here or by the gateway",
    "provider": "the gateway's provider failed", "store": "locked, missing or damaged",
    "unknown_outcome": "interrupted, and perhaps billed",
    "peer": "the other end broke the protocol, or is overloaded",
}


def add_examples(app: typer.Typer) -> None:
    """Gives each command of `app`, and of the groups in it, its examples."""
    app.info.epilog = f"{_shown(EXAMPLES[''])}\n\n{_exit_codes()}"
    for name, within in ("", app), *((str(group.name), group.typer_instance) for group in app.registered_groups):
        if name and within is not None and name in EXAMPLES:
            within.info.epilog = _shown(EXAMPLES[name])
        for command in within.registered_commands if within is not None else ():
            own = command.name or (command.callback.__name__ if command.callback is not None else "")
            if lines := EXAMPLES.get(f"{name} {own}".strip()):
                command.epilog = _shown(lines)


def _shown(lines: tuple[str, ...]) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _exit_codes() -> str:
    codes = {0: "done", 1: "anything else", 2: "the command line is wrong"}
    codes |= {code: f"{fault.replace('_', ' ')}: {_CAUSES[fault]}" for fault, code in EXIT_CODES.items()}
    codes[130] = "ended by Ctrl-C"
    return "\b\nExit codes:\n" + "\n".join(f"  {code:<4} {words}" for code, words in codes.items())
