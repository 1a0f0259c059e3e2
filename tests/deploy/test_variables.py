"""The role's variables are in step with the option table, and its template writes what the parser reads."""

from typing import Any

import jinja2
import pytest
import yaml

from appliance.config import OPTIONS, Config, parse
from deploy import variables

FILES = variables.files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_are_in_step_with_the_table(path: Any) -> None:
    assert path.read_text() == FILES[path], "run `make docs`"


def render(**given: Any) -> str:
    """Write a configuration with these variables, named without their prefix, as the role would."""
    defaults = yaml.safe_load((variables.ROLE / "defaults/main/options.yml").read_text())
    template = (variables.ROLE / "templates/smtp-gated.conf.j2").read_text()
    values = defaults | {f"smtp_appliance_{name}": value for name, value in given.items()}
    environment = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True)
    implied = {"workers": 3}
    written = environment.from_string(template)
    return str(written.render(values, smtp_appliance_implied=implied, ansible_managed="test"))


def test_every_option_can_be_set_by_its_variable() -> None:
    ours = Config({"proxy_name": "gw.example.test"})
    values = {
        name: ours.written(name) for name, option in OPTIONS.items() if not option.obsolete and name != "mode"
    }
    assert (
        parse(render(mode="tproxy", **values)).text()
        == parse("".join(f"{name} {value}\n" for name, value in (values | {"mode": "tproxy"}).items())).text()
    )


def test_values_are_written_as_the_file_has_them() -> None:
    text = render(
        mode="tproxy",
        ignore_errors=True,
        trusted_clients=["10.0.0.1", "10.0.1.0/24"],
        msg_virus_locked="first\nsecond",
        max_per_host=0,
        metrics_listen="",
    )
    assert set(text.splitlines()) == {
        "# test",
        "mode tproxy",
        "ignore_errors yes",
        "trusted_clients 10.0.0.1,10.0.1.0/24",
        r"msg_virus_locked first\nsecond",
        "max_per_host 0",
        "metrics_listen ",
        "workers 3",
    }
