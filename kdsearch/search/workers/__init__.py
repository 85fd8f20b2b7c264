"""Several processes on one study: trial slots, the trial loop, the supervisor, the live view."""
