"""The machine: devices, seeds, files, signals, plugins."""
