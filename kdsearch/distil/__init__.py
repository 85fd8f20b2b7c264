"""Distillation: losses, the training loop, and the teacher.

Others use `answers`, `checkpoint`, `lesson`, `loss`, `optimizer`, `precision`, `qat`, `step`, `teacher`, `train`.
"""
