"""Pick a student from a front, export it to a file for another runtime, verify it there and time it there.

Others use `device_folder`, `formats`, `front_timing`, `pick`, `ship`.
"""
