"""The supervisor: the privileged parent that never reads a byte of mail, and the command line."""
