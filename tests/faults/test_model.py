"""The model of exactly once can fail: each mistake it knows is found. The check itself is a stage of the `ci` tier."""

import pytest

from scripts import check_model


@pytest.mark.skipif(bool(check_model.missing_tools()), reason="spin or gcc is not installed")
@pytest.mark.parametrize("bug", check_model.BUGS)
def test_a_mistake_in_the_model_is_found(bug: str) -> None:
    assert "assertion violated" in check_model.check(2, bug).violation
