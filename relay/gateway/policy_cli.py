"""`relay gateway policy ...`: tries a policy before it is in force, explains its decisions, brings it into force."""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relay.gateway.command import CONFIG_DEFAULT, ConfigOption, JsonOption

if TYPE_CHECKING:
    from relay.gateway.config import Config
    from relay.gateway.policy.questions import Decision, Question

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Who may do what: check the rules, have a decision explained, bring changed rules into force."""


@app.command()
def check(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Check groups and rules as `serve` would. A mistake is named by key, or by file and line."""
    from relay.gateway.config import load
    from relay.gateway.policy.decisions import Policy

    rules = load(config).rules
    engine = "opa" if rules.opa is not None else "cedar"
    groups = sorted({name for name, _ in rules.patterns if "[" not in name})
    answer = {
        "engine": engine, "rules": [rule.shown for rule in rules.cedar], "groups": groups,
        "models": list(rules.models), "version": Policy(rules).version,
    }
    if as_json:
        typer.echo(json.dumps(answer))
        return
    if rules.opa is not None:
        typer.echo(f"OPA decides, at {rules.opa.url}; whether it can be reached, `explain` shows")
    else:
        typer.echo(f"{len(rules.cedar)} rules and {len(groups)} groups, without a mistake")
    typer.echo(f"version {answer['version']}")


@app.command()
def explain(
    who: Annotated[str, typer.Argument(metavar="ID", help="edge/NAME and the like, or a whole SPIFFE ID.")],
    verb: Annotated[str, typer.Argument(metavar="VERB", help="Like model:invoke.")],
    resource: Annotated[str, typer.Argument(metavar="RESOURCE", help="A model's name; for relay:use a hop's ID.")],
    config: ConfigOption = CONFIG_DEFAULT,
    via: Annotated[str, typer.Option("--via", metavar="ID", help="The hop it comes through.")] = "",
    disk: Annotated[str, typer.Option("--disk", help="encrypted, 'not encrypted' or unknown.")] = "unknown",
    tpm: Annotated[str, typer.Option("--tpm", help="present, absent or unknown.")] = "unknown",
    device_version: Annotated[str, typer.Option("--device-version", help="Like 0.1.0.")] = "",
    attested_tpm: Annotated[str, typer.Option("--attested-tpm", help="none, any or certified.")] = "none",
    as_json: JsonOption = False,
) -> None:
    """Say which rule allows or denies this, by the files as they are. Exits with 0 if it is allowed, else 6."""
    from relay.gateway.config import load
    from relay.gateway.policy.questions import ATTESTED, Question, posture_of
    from transport.errors import BadInput

    if attested_tpm not in ATTESTED:
        raise BadInput("this is no attestation", hint=f"one of {', '.join(ATTESTED)}")
    settings = load(config)
    if _verb(verb) == "relay:use":
        resource = str(_id(settings, resource))
    question = Question(
        _id(settings, who), verb, resource, str(_id(settings, via)) if via else "",
        posture_of(disk, tpm, device_version), attested_tpm,
    )
    decision, groups, version = asyncio.run(_decide(settings, question))
    if as_json:
        typer.echo(json.dumps({
            "allowed": decision.allowed, "rules": list(decision.rules), "reason": decision.reason, "version": version,
            "unavailable": decision.unavailable, "input": question.document(groups),
        }))
    else:
        typer.echo(decision.reason)
    if not decision.allowed:
        raise typer.Exit(6)


@app.command()
def reload(config: ConfigOption = CONFIG_DEFAULT, as_json: JsonOption = False) -> None:
    """Bring changed rules into force in the gateway that runs. With a mistake in them, the old ones stay."""
    from relay.gateway.config import load
    from relay.gateway.control import call

    answer: dict[str, Any] = asyncio.run(call(load(config).directory, "policy_reload", {}))
    if as_json:
        typer.echo(json.dumps(answer))
        return
    typer.echo(f"version {answer['version']} is in force" + ("" if answer["changed"] else ", as before"))


async def _decide(settings: "Config", question: "Question") -> tuple["Decision", tuple[str, ...], str]:
    from relay.gateway.policy.decisions import Policy

    policy = Policy(settings.rules)
    try:
        return await policy.decide(question), policy.groups(question.id), policy.version
    finally:
        await policy.close()


def _id(settings: "Config", text: str) -> Any:
    from transport.identity.svid import SpiffeId

    return SpiffeId.parse(text if "://" in text else f"spiffe://{settings.trust_domain}/{text.removeprefix('/')}")


def _verb(text: str) -> str:
    """Raises BadInput."""
    from relay.gateway.policy.questions import VERBS
    from transport.errors import BadInput

    if text not in VERBS:
        raise BadInput("there is no such verb", hint=f"one of {', '.join(VERBS)}")
    return text
