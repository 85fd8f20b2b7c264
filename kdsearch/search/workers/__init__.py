"""Several processes on one study: trial slots, liveness, the supervisor, the live view."""
