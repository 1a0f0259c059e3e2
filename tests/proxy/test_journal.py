"""Names and addresses in the log (rule 9): which of them, how long, plain or digested; never a password."""

import asyncio
import base64
import hashlib
import itertools
import time
from pathlib import Path

import pytest
import uvloop

from appliance.log import Log
from lab.process import wait_until
from tests.lab.scripted import Hook, Talk
from tests.proxy.inside import Inside
from tests.proxy.test_events import CLEAN
from tests.proxy.within import served, service

SENDERS = {"accepted": "good@client.test", "rejected": "bad@client.test"}
RECIPIENTS = {"accepted": "alice@example.test", "rejected": "nobody@example.test"}
WORDS = ("accepted", "rejected", "base64")
MASKS = [
    *("off", "no", "none", "0"),
    *(",".join(chosen) for size in (1, 2, 3) for chosen in itertools.combinations(WORDS, size)),
    *("1", "2", "3", "5", "6", "7"),
]


def shown(address: str, mask: set[str]) -> str:
    if "base64" not in mask:
        return address
    return base64.b64encode(hashlib.md5(address.encode(), usedforsecurity=False).digest()).decode()


def meant(mask: str) -> set[str]:
    """Give the words that the value of a mask stands for."""
    if mask.isdigit():
        return {word for bit, word in enumerate(WORDS) if int(mask) >> bit & 1}
    return set(mask.split(",")) & set(WORDS)


def answer(code: str) -> Hook:
    """Answer with this code."""

    def hook(talk: Talk) -> bool:
        talk.say(f"{code} 5.1.0 this is the answer")
        return True

    return hook


def first(hook: Hook) -> Hook:
    """Do it the first time only."""
    left = [hook]
    return lambda talk: left and left.pop()(talk)


def converse(inside: Inside) -> list[str]:
    """Try both senders and both recipients, whose bad ones the server refuses; give what was logged."""
    inside.server.hooks["MAIL"], inside.server.hooks["RCPT"] = first(answer("553")), first(answer("550"))
    with inside.session() as client:
        assert client.ask(f"MAIL FROM:<{SENDERS['rejected']}>").startswith("553")
        assert client.ask(f"MAIL FROM:<{SENDERS['accepted']}>").startswith("250")
        assert client.ask(f"RCPT TO:<{RECIPIENTS['rejected']}>").startswith("550")
        assert client.ask(f"RCPT TO:<{RECIPIENTS['accepted']}>").startswith("250")
    inside.wait_log("CLOSE")
    return inside.log


@pytest.mark.option("log_mail_from", "log_rcpt_to")
@pytest.mark.parametrize("mask", MASKS)
def test_addresses_are_logged_as_listed(inside: Inside, mask: str) -> None:
    words = meant(mask)
    outcomes = words - {"base64"}
    for option, prefix, addresses, codes in (
        ("log_mail_from", "info: MAIL FROM ", SENDERS, {"accepted": 250, "rejected": 553}),
        ("log_rcpt_to", "info: RCPT TO: ", RECIPIENTS, {"accepted": 250, "rejected": 550}),
    ):
        inside.use(**{option: mask})
        logged = [line for line in converse(inside) if line.startswith(("info: MAIL", "info: RCPT"))]
        expected = {f"{prefix}{codes[outcome]}<{shown(addresses[outcome], words)}>" for outcome in outcomes}
        assert {line.partition(" src=")[0] for line in logged} == expected


@pytest.mark.option("email_length")
@pytest.mark.parametrize("mask", ["accepted", "accepted,base64"])
def test_addresses_are_cut_to_their_length_before_they_are_digested(inside: Inside, mask: str) -> None:
    inside.use(email_length=7, log_mail_from=mask, log_rcpt_to=mask)
    inside.send(CLEAN)
    inside.wait_log(f"MAIL FROM 250<{shown('sender@', meant(mask))}> src=")
    inside.wait_log(f"RCPT TO: 250<{shown('alice@e', meant(mask))}> src=")


@pytest.mark.option("email_length")
def test_without_a_length_all_of_an_address_is_logged(inside: Inside) -> None:
    inside.use(email_length=0, log_mail_from="accepted")
    inside.send(CLEAN)
    inside.wait_log("MAIL FROM 250<sender@client.test> src=")


@pytest.mark.parametrize(("verb", "words"), [("MAIL FROM", "MAIL FROM"), ("RCPT TO", "RCPT TO:")])
def test_the_refusal_that_is_one_too_many_is_logged_too(
    inside: Inside, tmp_path: Path, verb: str, words: str
) -> None:
    inside.use(
        ratelimit_period=60,
        ratelimit_path=str(tmp_path),
        ratelimit_mailfrom_rejects=1,
        ratelimit_rcptto_rejects=1,
        log_mail_from="rejected",
        log_rcpt_to="rejected",
        lock_on="never",
    )
    inside.server.hooks["MAIL"] = inside.server.hooks["RCPT"] = answer("550")
    with inside.session() as client:
        assert client.ask(f"{verb}:<a@client.test>").startswith("550 5.1.0 ")
        assert client.ask(f"{verb}:<b@client.test>").startswith("550 5.7.1 ")
    inside.wait_log("CLOSE")
    logged = [line.partition(" src=")[0] for line in inside.log if f" {verb}" in line]
    assert logged == [f"info: {words} 550<{name}@client.test>" for name in "ab"]


@pytest.mark.option("log_helo")
@pytest.mark.parametrize("wanted", ["yes", "no"])
def test_names_are_logged_when_wanted(inside: Inside, wanted: str) -> None:
    inside.use(log_helo=wanted)
    with inside.connect() as client:
        client.reply()
        client.ask("HELO one.test")
        client.ask("ehlo two.test, src=10.0.0.1")
    inside.wait_log("CLOSE")
    names = [line.partition("helo=")[2] for line in inside.log if "HELO/EHLO" in line]
    assert names == (["one.test", "two.test%2C src%3D10.0.0.1"] if wanted == "yes" else [])


@pytest.mark.option("log_mail_from")
def test_an_address_cannot_forge_a_line(inside: Inside) -> None:
    inside.use(log_mail_from="accepted")
    with inside.session() as client:
        client.ask("MAIL FROM:<a, src=10.0.0.1\t\x1b[31m@b>")
    assert inside.wait_log("MAIL FROM").startswith(
        "info: MAIL FROM 250<a%2C src%3D10.0.0.1%09%1B[31m@b> src=127"
    )


def test_passwords_are_never_logged(inside: Inside) -> None:
    inside.use(log_helo="yes", log_mail_from="accepted,rejected", log_rcpt_to="accepted,rejected")
    inside.server.hooks["AUTH"] = answer("235")
    with inside.session() as client:
        secret = base64.b64encode(b"\0joe\0open sesame").decode()
        assert client.ask(f"AUTH PLAIN {secret}").startswith("235")
        client.ask(f"XYZZY {secret}")
    wait_until(lambda: "CLOSE" in " ".join(inside.log), 5, "the end")
    assert "AUTH:ACCEPT" in " ".join(inside.log)
    assert not {part for part in (secret, "sesame") if part in " ".join(inside.log)}


def test_a_clock_that_is_set_back_makes_no_session_end_before_it_began(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        over = asyncio.Event()
        text = f"mode fixed\nfixed_server 127.0.0.1\nfixed_server_port 1\nlock_path {tmp_path}\nmax_load 0\n"
        log = Log("info", "daemon", stderr=False, target="stderr")
        with served(service(text, log), over.set) as address:
            reader, writer = await asyncio.open_connection(*address)
            await reader.readline()
            earlier = time.time() - 3600
            monkeypatch.setattr(time, "time", lambda: earlier)
            writer.write(b"QUIT\r\n")
            await reader.read()
            writer.close()
            await over.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(work(), 10))
    assert ", time=0, " in capfd.readouterr().err.partition("CLOSE by=")[2]
