"""The texts made of a configuration parse back to it, and parsing any text ends well."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from appliance.config import OPTIONS, Config, ConfigError, DnsList, SocketAddress, dump, load, parse
from appliance.config.check import errors
from appliance.config.dnsbl import ListZone, NameServer
from appliance.config.network import IP, Net, Socket
from appliance.config.option import (
    Bool,
    Enum,
    File,
    Flags,
    Float,
    Int,
    Kind,
    List,
    Maybe,
    Message,
    Text,
)
from appliance.config.regex import Regex

words = (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)
    .map(str.strip)
    .filter(bool)
)
paths = st.from_regex(r"/[!-~ ]{0,20}[!-~]", fullmatch=True).map(Path)
hosts = st.one_of(st.ip_addresses().map(str), st.just("localhost"))
sockets = st.one_of(
    st.builds(SocketAddress, paths), st.builds(SocketAddress, st.none(), hosts, st.integers(1, 65535))
)
networks = st.one_of(
    st.ip_addresses(v=4).map(lambda address: Net().read(str(address))),
    st.sampled_from([Net().read("10.0.0.0/8"), Net().read("2001:db8::/32")]),
)


octets = st.lists(
    st.tuples(st.integers(0, 99), st.integers(99, 255)), min_size=1, max_size=3, unique=True
).map(tuple)
filters = st.tuples(st.just(((127, 127),)), octets, octets, st.just(((0, 1), (2, 2), (9, 255))))
lists = st.builds(
    DnsList,
    st.sampled_from(["a.example", "b_b.example", "x"]),
    st.one_of(st.just(()), filters),
    st.sampled_from([1.0, -2.0, 0.001, 9999.999]),
)


plain: dict[type[Kind[Any]], st.SearchStrategy[Any]] = {
    Float: st.floats(allow_nan=False, allow_infinity=False),
    Bool: st.booleans(),
    Message: st.lists(words, min_size=1, max_size=3)
    .map("\n".join)
    .filter(lambda text: "\\n" not in text),  # in a file that is a new line, so no text has it
    Regex: st.sampled_from(["", "^a b$", "[a-z]+\\.", "(?i)x|y"]),
    IP: st.ip_addresses(),
    Net: networks,
    File: paths,
    NameServer: st.builds(SocketAddress, st.none(), st.ip_addresses().map(str), st.integers(1, 65535)),
    Socket: sockets,
}


def values(kind: Kind[Any]) -> st.SearchStrategy[Any]:
    """Any value of a type."""
    match kind:
        case Int():
            return st.integers(kind.minimum, kind.maximum)
        case Text():
            texts = st.from_regex(kind.pattern, fullmatch=True)
            return texts.filter(lambda text: text == text.strip() and text.isprintable() and text != "*")
        case Enum():
            return st.sampled_from(kind.words)
        case Flags():
            return st.frozensets(st.sampled_from(kind.words), min_size=0 if kind.nothing else 1)
        case List():
            return st.lists(values(kind.kind), unique=True, max_size=3).map(tuple)
        case Maybe():
            return st.one_of(st.none(), values(kind.kind))
        case ListZone():
            return lists if kind.weighted else lists.map(lambda entry: DnsList(entry.zone, entry.answers))
    return plain[type(kind)]


settings_of_a_file = st.lists(
    st.sampled_from(list(OPTIONS)).flatmap(lambda name: st.tuples(st.just(name), values(OPTIONS[name].kind))),
    max_size=8,
).map(dict)


@settings(max_examples=200, deadline=None)
@given(settings_of_a_file)
def test_written_configurations_parse_back(given_values: dict[str, Any]) -> None:
    config = Config(given_values)
    assume(not list(errors(config, None, complete=False)))
    assert parse(config.text()) == config
    assert parse(dump(config, messages=True)) == config
    assert all(getattr(config, name) == value for name, value in given_values.items())


def test_the_defaults_parse_back() -> None:
    assert parse(Config().text()) == parse(dump(Config(), messages=True)) == parse("") == Config()
    assert parse(dump(Config(), messages=True)).warnings == ()


def test_ranges_parse_back_one_network_after_the_other() -> None:
    whole = "2001:db8:{0:x}:ffff:ffff:ffff:ffff:1-2001:db8:{0:x}:ffff:ffff:ffff:ffff:fffe"
    config = parse("trusted_clients " + ",".join(whole.format(number) for number in range(0x1000, 0x1222)))
    assert len(config.trusted_clients) == 16380  # of 16384 that there may be
    assert parse(config.text()) == config


lines = st.one_of(
    st.text(),
    st.builds("{} {}".format, st.sampled_from(list(OPTIONS)), st.text()),
    st.sampled_from(["", "# c", "port 1"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(lines))
def test_any_text_is_a_configuration_or_an_error(parts: list[str]) -> None:
    try:
        config = parse("\n".join(parts))
    except ConfigError as error:
        assert all(problem.message and "\n" not in str(problem) for problem in error.problems)
    else:
        assert parse(config.text()) == config


@settings(max_examples=50, deadline=None)
@given(st.binary())
def test_any_file_is_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-file"
    file.write_bytes(b"mode pf\n" + data)
    try:
        config = load(file)
    except ConfigError as error:
        assert str(error).startswith(f"{file}:")
    else:
        assert config == parse(config.text())
