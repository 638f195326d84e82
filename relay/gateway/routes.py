"""Every route a device can ask for, with the verb that policy decides on. What is not here does not exist."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Route:
    """`operation` names who answers it (and is the GenAI operation name); `bodied` routes carry a JSON body."""

    operation: str
    verb: str
    bodied: bool


ROUTES: Final[dict[tuple[str, str], Route]] = {
    ("POST", "/v1/chat/completions"): Route("chat", "model:invoke", bodied=True),
    ("GET", "/v1/models"): Route("models", "model:list", bodied=False),
}
