"""Who may use which model, in lines for a person."""

from collections.abc import Iterable

from relay.gateway.policy.decisions import Policy
from relay.gateway.policy.questions import Question
from relay.gateway.policy.settings import Rules
from transport.errors import BadInput
from transport.identity.svid import SpiffeId


async def who_may_what(rules: Rules, trust_domain: str, elsewhere: Iterable[str] = ()) -> list[str]:
    """By decisions on somebody of each pattern, who has told nothing of his device yet. `elsewhere`: models that are
    no provider's. Raises ConfigError as `Policy` does.
    """
    if rules.opa is not None:
        return [f"OPA decides who may do what, at {rules.opa.url}"]
    policy, told = Policy(rules), []
    names = sorted({*rules.models, *elsewhere})
    for pattern in dict.fromkeys(one for _, one in rules.patterns):
        try:
            somebody = SpiffeId(trust_domain, "/" + "/".join(pattern).replace("*", "somebody"))
        except BadInput:
            continue
        question = Question(somebody, "model:invoke", "")
        models = [name for name in names if (await policy.decide(question.about(name))).allowed]
        told.append(f"/{'/'.join(pattern)} may use {', '.join(models) if models else 'no model'}")
    await policy.close()
    return told or ["nobody may use any model"]
