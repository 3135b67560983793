"""What the server's limits are called on the command line and on the page about them."""

import dataclasses
import re
from pathlib import Path

import pytest

from spn_jax.demo import limits
from spn_jax.demo.__main__ import parse
from spn_jax.demo.limits import Limits

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "web_page.md").read_text()


def test_the_table_of_the_page_has_every_limit_with_its_default() -> None:
    rows = re.findall(r"^\| `--([a-z-]+)` \| (\d+) \|", PAGE, re.MULTILINE)
    assert {name.replace("-", "_"): int(default) for name, default in rows} == dataclasses.asdict(Limits())


def test_page_and_help_tell_how_long_a_client_may_take(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for told in (said, " ".join(PAGE.split())):
        assert f"head of a request must arrive within {limits.HEAD_SECONDS:g} seconds" in told
        assert f"may pause for {limits.UPLOAD_SECONDS:g} seconds in all" in told
        assert f"must bring {limits.SLOWEST_UPLOAD // 1000} kB a second" in told
