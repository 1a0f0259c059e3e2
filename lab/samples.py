"""The two harmless texts that scanners take for bad ones, in pieces so that none flags this file."""

# The EICAR test file, which stands for a virus.
EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}" + "$EICAR" + "-STANDARD-" + "ANTIVIRUS-TEST-FILE!$H+H*"

# The GTUBE line, which SpamAssassin scores 1000.
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*" + "GTUBE-STANDARD-ANTI-UBE-TEST" + "-EMAIL*C.34X"
