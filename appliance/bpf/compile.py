"""Build the gate with bcc and pin it: python -m appliance.bpf.compile DIRECTORY.

gate.py runs this as a process of its own, because the compiler stays in the memory of whoever has called it.
The program is pinned last: a directory that has it has everything. Nothing is attached here.
"""

import os
import sys
import tempfile
from pathlib import Path

from appliance.bpf import headers, maps, programs
from appliance.bpf.layout import MAPS, PROGRAM, SIZES, SOURCE


def build(directory: Path) -> None:
    """Compile, load and pin in a new directory of a BPF file system. Raises OSError or what bcc raises."""
    with tempfile.TemporaryDirectory(prefix="smtp-gated-headers-") as scratch:
        os.environ["BCC_KERNEL_SOURCE"] = str(headers.unite(headers.find(), Path(scratch)))
        from bcc import BPF  # type: ignore[import-untyped]

        flags = [f"-D{name}={size}" for name, size in SIZES.items()]
        compiled = BPF(text=SOURCE.read_text(), cflags=[*flags, "-Wno-everything"])
    program = programs.load(compiled.dump_func(PROGRAM), PROGRAM)
    directory.mkdir(mode=0o700)
    for name in MAPS:
        maps.pin(compiled[name].map_fd, directory / name)
    maps.pin(program, directory / PROGRAM)


def main() -> int:
    """Build under the directory that the command line names; tell on stderr why not."""
    try:
        build(Path(sys.argv[1]))
    except Exception as error:  # bcc's are plain exceptions, and the compiler has told the rest
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
