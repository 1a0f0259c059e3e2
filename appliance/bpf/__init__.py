"""Programs for the kernel."""
