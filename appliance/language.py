"""The language of the system's own error texts, which becomes part of what mail users read (option locale).

The supervisor asks whether a locale is known, a worker sets it at its start and at each reload. It belongs to
the whole process, so that sessions from before a reload get the new language, too. The gateway's own texts
are the msg_ options and have nothing to do with this.
"""

import contextlib
import errno
import locale
import os


def use(name: str) -> bool:
    """Have os.strerror speak the language of a locale; empty: English. False and English if it is unknown."""
    if locale.nl_langinfo(locale.CODESET) != "UTF-8":  # the system's texts are converted to it
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    try:
        locale.setlocale(locale.LC_MESSAGES, name or "C")
    except locale.Error:
        locale.setlocale(locale.LC_MESSAGES, "C")
        return False
    os.strerror(errno.EPERM)  # reads the catalogue as long as its directory can be reached
    return True


def is_known(name: str) -> bool:
    """Tell whether the system has this locale; this process goes on speaking as it did."""
    before = locale.setlocale(locale.LC_MESSAGES)
    try:
        locale.setlocale(locale.LC_MESSAGES, name or "C")
    except locale.Error:
        return False
    finally:
        locale.setlocale(locale.LC_MESSAGES, before)
    return True
