"""From a front to a file that another runtime loads: picked, exported, verified there, timed there."""
