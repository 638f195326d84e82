"""Sections [[inspect]]: the first rule that fits decides, and one that never could is an error."""

from pathlib import Path

import pytest

from relay.gateway.config import parse
from relay.gateway.errors import ConfigError
from tests.support.https_client import CONFIG


def read(text: str, tmp_path: Path = Path("/nowhere")) -> object:
    return parse((CONFIG.format(base_url="http://127.0.0.1:9") + text).encode(), tmp_path).inspect


def test_the_first_that_fits_decides() -> None:
    rules = read("""
[[inspect]]
mode = "off"
id = "/workload/tests-*"
""".replace("tests-*", "tester") + """
[[inspect]]
mode = "block"
id = "/workload/*"
models = ["small"]
[[inspect]]
mode = "log"
""")
    modes = [rules.of(path, model).mode for path, model in (  # type: ignore[attr-defined]
        ("/workload/tester", "small"), ("/workload/a", "small"), ("/workload/a", "other"), ("/edge/a/b", "small"),
    )]  # fmt: skip
    assert modes == ["off", "block", "log", "log"]


def test_whom_no_rule_fits_is_flagged() -> None:
    assert read("").of("/edge/a", "small").mode == "flag"  # type: ignore[attr-defined]
    assert read('[[inspect]]\nmode = "off"\nid = "/edge/a"').of("/edge/b", "small").mode == "flag"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("text", "wrong"), [
    ('mode = "deny"', "inspect[0].mode"),
    ('mode = "block"\nid = "edge/*"', "inspect[0].id: an ID pattern starts"),
    ('mode = "block"\nid = "/edges/*"', "inspect[0].id: nobody with such an ID"),
    ('mode = "block"\nid = "/hop/*"', "inspect[0].id: nobody with such an ID"),
    ('mode = "block"\nid = "/edge"', "inspect[0].id: nobody with such an ID"),
    ('mode = "block"\nmodels = ["smal"]', "inspect[0].models: no provider and no rule has the model smal"),
    ('mode = "block"\nmodels = []', "inspect[0].models: a rule names"),
    ('mode = "block"\nroles = []', "inspect[0].roles"),
    ('mode = "block"\nroles = ["tools"]', "inspect[0].roles"),
    ('mode = "block"\nblock_at = 1.5', "inspect[0].block_at"),
    ('mode = "block"\nblock_at = 0.2\nflag_at = 0.3', "inspect[0].flag_at"),
    ('mode = "block"\n[[inspect]]\nmode = "off"\nid = "/edge/a"', "inspect[1]: inspect[0] always decides first"),
    ('mode = "log"\nid = "/edge/*"\n[[inspect]]\nmode = "block"\nid = "/edge/a"\nmodels = ["small"]', "inspect[1]"),
    ('mode = "block"\nwords = 3', "inspect[0].words"),
])  # fmt: skip
def test_a_rule_that_never_decides_is_an_error(text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("[[inspect]]\n" + text)
    assert str(caught.value).startswith(wrong)
