"""Copies of messages (rule 4.3): what they begin with, who may read them, and which of them are kept."""

import os
import re
from pathlib import Path

import pytest

from tests.proxy.inside import Inside
from tests.proxy.test_events import CLEAN, SCAN, SPAM, VIRUS

FAILS = "X-Virus:\r\n\r\ntext\r\n"
MAILS = {"clean": CLEAN, "virus": VIRUS, "spam": SPAM, "error": FAILS}
ALL = set(MAILS)
ON_OF = [
    *(("never", set()), ("always", ALL), ("error", {"error"}), ("spam", {"spam"}), ("virus", {"virus"})),
    *(
        ("error,spam", {"error", "spam"}),
        ("virus,error", {"virus", "error"}),
        ("spam,virus", {"spam", "virus"}),
    ),
    *(("error,spam,virus", {"error", "spam", "virus"}), ("virus,always", ALL)),
]


def kept(inside: Inside) -> dict[str, list[Path]]:
    """Give the copies by the mail they are of."""
    inside.idle()
    found: dict[str, list[Path]] = {}
    for path in inside.copies():
        text = path.read_bytes().decode().partition("\r\n")[2]
        found.setdefault(next(name for name, mail in MAILS.items() if mail == text), []).append(path)
    return found


@pytest.mark.option("spool_leave_on", "spool_path")
@pytest.mark.parametrize(("transfer", "ignore"), [("path", "yes"), ("stream", "no")])
@pytest.mark.parametrize(("on", "of"), ON_OF, ids=[on for on, _ in ON_OF])
def test_copies_are_kept_of_what_is_listed(
    inside: Inside, on: str, of: set[str], transfer: str, ignore: str
) -> None:
    inside.use(**SCAN, spool_leave_on=on, antivirus_transfer=transfer, lock_duration=0, ignore_errors=ignore)
    for mail in MAILS.values():
        inside.send(mail)
    found = kept(inside)
    assert set(found) == of
    assert {len(copies) for copies in found.values()} <= {1}
    assert "SPOOL:FAILED" not in " ".join(inside.log)
    failed = 0 if ignore == "yes" else 1
    assert len([line for line in inside.log if "SPAM:CLEAN" in line]) == 2 - failed  # the failed one, too


@pytest.mark.option("spool_leave_on")
def test_spam_that_passes_is_kept_once(inside: Inside) -> None:
    inside.use(**SCAN, spool_leave_on="spam,always", lock_on="never")
    assert inside.send(SPAM).startswith("250")
    assert [len(copies) for copies in kept(inside).values()] == [1]
    assert "SPOOL:FAILED" not in " ".join(inside.log)


@pytest.mark.option("spool_leave_on")
def test_every_message_of_a_session_is_kept(inside: Inside) -> None:
    inside.use(**SCAN, spool_leave_on="always")
    with inside.session() as client:
        for _ in range(3):
            assert client.begin().finish(CLEAN).startswith("250")
    assert len(kept(inside)["clean"]) == 3


@pytest.mark.option("spool_leave_on", "size_limit")
def test_what_was_not_scanned_to_its_end_is_not_kept(inside: Inside) -> None:
    limits: dict[str, str | int] = {"size_limit": 1000, "scan_max_size": 500, "spam_max_size": 500}
    inside.use(spool_leave_on="always", **(SCAN | limits))
    assert inside.send("Subject: large\r\n\r\n" + "x" * 2000 + "\r\n").startswith("552")
    assert inside.send("Subject: larger than scanned\r\n\r\n" + "x" * 600 + "\r\n").startswith("250")
    with inside.session() as client:
        client.begin().send(b"Subject: cut off\r\n")
    inside.idle()
    assert inside.copies() == []


@pytest.mark.option("spool_perm", "spool_path")
@pytest.mark.parametrize("transfer", ["path", "stream"])
@pytest.mark.parametrize("perm", ["0600", "0640", "0666", "0444"])
def test_copies_have_exactly_these_permissions(inside: Inside, perm: str, transfer: str) -> None:
    inside.use(**SCAN, spool_leave_on="always", spool_perm=perm, antivirus_transfer=transfer)
    before = os.umask(0o077)
    try:
        assert inside.send(CLEAN).startswith("250")
    finally:
        os.umask(before)
    (copy,) = inside.copies()
    assert re.fullmatch(r"\d+\.\S+", copy.name)
    assert copy.stat().st_mode & 0o7777 == int(perm, 8)


@pytest.mark.option("spool_header")
def test_scanners_are_told_where_a_message_comes_from_and_servers_are_not(inside: Inside) -> None:
    inside.use(**SCAN, spool_leave_on="always", spool_header="X-From-The-Gate", nat_header_type="none")
    with inside.session() as client:
        port = client.socket.getsockname()[1]
        for _ in range(2):
            assert client.begin().finish(CLEAN).startswith("250")
    first, second = (path.read_bytes().decode() for path in inside.copies())
    server = f"127.0.0.1:{inside.server.address[1]}"
    for number, text in enumerate((first, second), 1):
        header = f"X-From-The-Gate: src=127.0.0.1:{port}, ident=, dst={server}, trns={number}\r\n"
        assert text == header + CLEAN
    assert set(inside.server.messages) == {CLEAN.removesuffix("\r\n")}


FORMS = {
    "none": r"",
    "ip-only": r"X-Gate: 127\.0\.0\.1\r\n",
    "generic": (
        r"X-Gate: from \[127\.0\.0\.1\]:PORT \[ident-empty\]\r\n"
        r"\tby gw\.example\.test with TPROXY id \S+\r\n"
    ),
}


@pytest.mark.option("nat_header", "nat_header_type", "abuse")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("abuse", ["", "abuse@example.test"])
def test_servers_are_told_where_a_message_comes_from(inside: Inside, form: str, abuse: str) -> None:
    inside.use(nat_header="X-Gate", nat_header_type=form, abuse=abuse)
    with inside.session() as client:
        port = client.socket.getsockname()[1]
        assert client.begin().finish(CLEAN).startswith("250")
    header = FORMS[form].replace("PORT", str(port))
    more = rf"\tabuse-to {abuse}\r\n" if abuse and form == "generic" else ""
    (message,) = inside.server.messages
    assert re.fullmatch(header + more + "Subject: clean\r\n\r\ntext", message)
