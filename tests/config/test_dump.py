"""The print formats of -t, -T and -C, which scripts read."""

import re

from appliance.config import OPTIONS, Config, dump, parse

CONFIG = parse(
    "mode fixed\nfixed_server 192.0.2.1\nspam_threshold 6.5\nmsg_hello hi\\nthere\nlock_on spam,virus"
)


def test_every_option_is_padded_to_thirty_columns() -> None:
    lines = [line for line in dump(CONFIG, messages=True).splitlines() if line and not line.startswith("#")]
    assert [line[:30].rstrip() for line in lines] == list(OPTIONS)
    assert all(line[30] == " " for line in lines)
    assert [line[31:] for line in lines] == [CONFIG.written(name) for name in OPTIONS]


def test_forms_of_values() -> None:
    text = dump(CONFIG, messages=True)
    for line in (
        "spool_perm                     0660",
        "ignore_errors                  no",
        "earlytalk                      yes",
        "max_load                       2",
        "spam_threshold                 6.5",
        "lock_on                        virus,spam",
        "log_mail_from                  off",
        "workers                        auto",
        "fixed_server                   192.0.2.1",
        "msg_hello                      hi\\nthere",
        "abuse                          ",
    ):
        assert f"\n{line}\n" in text


def test_the_short_form_has_neither_messages_nor_allowed_words() -> None:
    text = dump(CONFIG, messages=False)
    assert "msg_" not in text
    assert "locale" not in text
    assert "[ one ]" not in text
    assert "\nmode                           fixed\n" in text


def test_the_long_form_says_what_is_allowed() -> None:
    text = dump(Config(), messages=True)
    assert "\n# auth_require [ one ]: { no ifsupported mandatory }\nauth_require  " in text
    assert "\n# spool_leave_on [ multiple ]: { error spam virus always never }\nspool_leave_on  " in text
    modes = (
        "fixed fixed+xclient remote remote-udp getsockname netfilter tproxy tproxy,netfilter ipfw ipfilter pf"
    )
    assert f"\n# mode [ one ]: {{ {modes} }}\nmode  " in text
    here = dump(Config(), messages=True, modes=("pf", "fixed"))
    assert "\n# mode [ one ]: { fixed pf }\nmode  " in here


def test_what_is_without_effect_says_so_in_both_forms() -> None:
    for text in (dump(Config(), messages=False), dump(Config(), messages=True)):
        assert (
            "\n# dspam_storage: accepted for the sake of old files, without effect\ndspam_storage  " in text
        )
        marked = set(re.findall(r"^# (\w+): accepted", text, re.MULTILINE))
        expected = {name for name, option in OPTIONS.items() if option.obsolete}
        assert marked == {name for name in expected if f"\n{name} " in text}
        assert "dspam_storage" in marked
