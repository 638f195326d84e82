"""The `edge` commands, a file a group. Their modules import typer and the standard library only; see cli.py."""
