"""Where bcc finds kernel headers, also for a kernel that has no header package of its own.

The gate needs only those that user space may rely on, so the headers of any recent kernel will do. Called by
compile.py and gate.py. Nothing on the machine is changed.
"""

import os
import platform
import re
from pathlib import Path

_SOURCES = Path("/usr/src")
_FOLDERS = {"x86_64": "x86", "aarch64": "arm64", "riscv64": "riscv", "armv7l": "arm", "i686": "x86"}


def find() -> tuple[Path, ...]:
    """Give the directories that have the headers together, () if there are none.

    Looked for are, in this order, what BCC_KERNEL_SOURCE names, the running kernel's own, and the newest of
    other kernels.
    """
    named = os.environ.get("BCC_KERNEL_SOURCE")
    if named:
        return (Path(named),) if Path(named, "include").is_dir() else ()
    modules = Path("/lib/modules", platform.release())
    if Path(modules, "build", "include").is_dir():
        source = modules / "source"
        return (modules / "build", source) if source.is_dir() else (modules / "build",)
    found = sorted(_SOURCES.glob("linux-headers-*-common"), key=_version, reverse=True)
    for common in found:
        name = common.name.removesuffix("-common")
        for generated in sorted(_SOURCES.glob(f"{name}-*")):
            if Path(generated, "include", "generated").is_dir():
                return generated, common
    return ()


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def unite(parts: tuple[Path, ...], target: Path) -> Path:
    """Make one tree of links in the directory `target` from the directories of `find`; give its root."""
    if len(parts) == 1:
        return parts[0]
    folder = Path("arch", _FOLDERS.get(platform.machine(), platform.machine()), "include")
    for headers in (Path("include"), folder):
        (target / headers).mkdir(parents=True)
        for part in parts:
            for entry in sorted(Path(part, headers).glob("*")):
                link = target / headers / entry.name
                if not link.exists():
                    link.symlink_to(entry)
    return target
