"""The manual pages are what the table of options and the command line say, and hold all of them."""

import re

import pytest

from appliance.config import OPTIONS
from appliance.supervisor import metrics
from appliance.supervisor.manual import DIRECTORY, METRICS, PAGES, page


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_in_step(name: str) -> None:
    made = page((DIRECTORY / f"{name}.in").read_text(encoding="utf-8"))
    assert made == (DIRECTORY / name).read_text(encoding="utf-8"), "run make docs and commit man/"


def test_every_option_has_its_entry() -> None:
    text = (DIRECTORY / "smtp-gated.conf.5").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.TP\n\\fB([a-z_0-9]+)\\fR \\fI", text, re.MULTILINE)) == sorted(OPTIONS)
    command = (DIRECTORY / "smtp-gated.8").read_text(encoding="utf-8")
    assert re.findall(r"^\.TP\n\\fB\\-(\w)\\fR", command, re.MULTILINE) == list("CfhKLrsStTvV")


def test_every_command_has_its_entry() -> None:
    text = (DIRECTORY / "appliance-ctl.8").read_text(encoding="utf-8")
    entries = {
        entry.replace("\\-", "-") for entry in re.findall(r"^\.TP\n\\fB([a-z ]+)\\fR", text, re.MULTILINE)
    }
    assert {"status", "locks", "lock", "unlock", "limits show", "config diff", "explain", "top"} <= entries


def test_the_list_of_metrics_is_in_step() -> None:
    text = METRICS.read_text(encoding="utf-8")
    assert text == metrics.documentation(), "run make docs and commit docs/"


def test_a_section_that_there_is_not() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        page("@nonsense@\n")


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.example])
def test_examples_are_values(name: str) -> None:
    kind = OPTIONS[name].kind
    value = kind.read(OPTIONS[name].example)
    assert kind.read(kind.write(value)) == value
    assert value != OPTIONS[name].default
