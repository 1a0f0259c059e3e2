"""4.1: who must authenticate, and what becomes of those who have; the bits that are logged of it."""

import pytest

from appliance.proxy.scoreboard import Counter
from tests.lab.scripted import Hook, Talk
from tests.proxy.inside import Inside


def offers(*extensions: str) -> Hook:
    def ehlo(talk: Talk) -> bool:
        talk.say(*(f"250-{extension}" for extension in ("mail.example.test", *extensions)), "250 HELP")
        return True

    return ehlo


def auth(talk: Talk) -> bool:
    """Let in whoever gives the right word in answer to a challenge."""
    talk.say("334 VGVsbCBtZQ==")
    talk.say("235 2.7.0 welcome" if talk.line() == "cmlnaHQ=" else "535 5.7.8 wrong")
    return True


def session(inside: Inside, *, offered: bool, words: tuple[str, ...]) -> Talk:
    inside.server.hooks |= {"EHLO": offers(*(["AUTH PLAIN"] if offered else [])), "AUTH": auth}
    client = inside.session()
    for word in words:
        assert client.ask("AUTH PLAIN").startswith("334 ")
        assert client.ask(word).startswith("235 " if word == RIGHT else "535 ")
    return client


RIGHT, WRONG = "cmlnaHQ=", "d3Jvbmc="
OUTCOMES: dict[str, tuple[bool, tuple[str, ...], int]] = {
    "not offered": (False, (), 0),
    "not used": (True, (), 1),
    "rejected": (True, (WRONG,), 5),
    "accepted": (True, (RIGHT,), 3),
    "accepted at last": (True, (WRONG, RIGHT), 7),
    "accepted though not offered": (False, (RIGHT,), 2),
}


@pytest.mark.option("auth_require", "msg_auth_required")
@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("require", ["no", "ifsupported", "mandatory"])
def test_who_may_send(inside: Inside, require: str, outcome: str) -> None:
    offered, words, bits = OUTCOMES[outcome]
    accepted = bool(bits & 2)
    may = accepted or require == "no" or (require == "ifsupported" and not offered)
    inside.use(auth_require=require, msg_auth_required="who are you?")
    refused, accepts, rejects = (
        inside.board.total(counter)
        for counter in (Counter.NOAUTHS, Counter.AUTH_ACCEPTS, Counter.AUTH_REJECTS)
    )
    with session(inside, offered=offered, words=words) as client:
        if may:
            assert client.begin().finish().startswith("250 ")
        else:
            client.ask("MAIL FROM:<a@client.test>")
            client.ask("RCPT TO:<b@example.test>")
            assert client.ask("DATA") == "530 who are you?"
            assert client.ask("RSET").startswith("250 ")  # the session goes on
            inside.wait_log("AUTH:REQUIRED")
    assert f"auth={bits}, " in inside.wait_log("CLOSE ")
    assert inside.board.total(Counter.NOAUTHS) - refused == (not may)
    assert inside.board.total(Counter.AUTH_ACCEPTS) - accepts == words.count(RIGHT)
    assert inside.board.total(Counter.AUTH_REJECTS) - rejects == words.count(WRONG)
    assert not [line for line in inside.log if RIGHT in line or WRONG in line]


SKIPS = ("antivir", "antispam", "antivir,antispam", "regex", "regex,antivir", "none")


@pytest.mark.option("auth_skip", "antivirus_type", "antispam_type")
@pytest.mark.parametrize("word", [RIGHT, WRONG], ids=["accepted", "rejected"])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize(
    ("check", "head", "sender"),
    [
        ("antivir", "X-Virus: Eicar\r\n", "a@client.test"),
        ("antispam", "X-Spam: 9\r\n", "a@client.test"),
        ("regex", "", "bad@client.test"),
    ],
)
def test_what_those_who_have_are_spared(
    inside: Inside, skip: str, word: str, check: str, head: str, sender: str
) -> None:
    inside.use(
        auth_skip=skip,
        antivirus_type="clamd",
        antispam_type="spamassassin",
        spam_max_size=1000,
        regex_reject_mail_from="^bad@",
        lock_duration=0,
    )
    spared = word == RIGHT and check in skip.split(",")
    with session(inside, offered=True, words=(word,)) as client:
        begun = client.ask(f"MAIL FROM:<{sender}>")
        if check == "regex" or not begun.startswith("250"):
            assert begun[:3] == ("250" if spared else "550")
            return
        client.ask("RCPT TO:<b@example.test>")
        client.ask("DATA")
        assert client.finish(f"{head}Subject: x\r\n\r\n")[:3] == ("250" if spared else "550")


@pytest.mark.parametrize(
    ("skip", "antivirus", "logged"),
    [
        ("antivir", "clamd", ["SCAN:SKIPPED", "SPAM:CLEAN"]),
        ("antispam", "clamd", ["SCAN:CLEAN", "SPAM:SKIPPED"]),
        ("antivir,antispam", "clamd", ["SCAN:SKIPPED", "SPAM:SKIPPED"]),
        ("antispam", "off", ["SPAM:SKIPPED"]),
    ],
)
def test_the_log_names_the_scans_they_are_spared(
    inside: Inside, skip: str, antivirus: str, logged: list[str]
) -> None:
    inside.use(auth_skip=skip, antivirus_type=antivirus, antispam_type="spamassassin", spam_max_size=1000)
    with session(inside, offered=True, words=(RIGHT,)) as client:
        assert client.begin().finish().startswith("250 ")
    words = [line.split()[1] for line in inside.log]
    assert [word for word in words if word.startswith(("SCAN", "SPAM"))] == logged


@pytest.mark.option("auth_skip")
def test_direct_is_for_those_whom_the_server_let_in(inside: Inside) -> None:
    options: dict[str, str | int] = {"auth_skip": "direct", "antivirus_type": "clamd", "lock_duration": 0}
    inside.use(**options)
    refusals = inside.known()["tally"][2]
    with session(inside, offered=True, words=(WRONG, RIGHT)) as client:
        assert client.begin().finish("X-Virus: Eicar\r\n").startswith("250 ")
        assert [row[1] for row in inside.rows()] == ["direct"]
    assert inside.known()["tally"][2] == refusals
    assert "auth=7, " in inside.wait_log("CLOSE:DIRECT ")
    with session(inside, offered=True, words=(WRONG,)) as client:
        assert client.begin().finish("X-Virus: Eicar\r\n").startswith("550 ")
