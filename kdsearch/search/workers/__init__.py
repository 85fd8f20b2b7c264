"""Many processes on one study: claimed trials, signs of life, the supervisor, the live view."""
