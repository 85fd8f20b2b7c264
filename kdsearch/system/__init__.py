"""The machine underneath: device and seeds, files written whole, signals, packages that plug in."""
