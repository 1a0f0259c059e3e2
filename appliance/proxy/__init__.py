"""The worker: what carries mail. Unprivileged, and the only part that touches its bytes."""
