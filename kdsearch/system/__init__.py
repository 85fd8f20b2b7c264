"""The machine: devices, seeds, files, signals, plugins.

Others use `files`, `machine`, `mounts`, `plugins`, `signals`.
"""
