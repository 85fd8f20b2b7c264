"""Distillation: losses, the training loop, and the teacher.

Others use `answers`, `checkpoint`, `frozen`, `lesson`, `loss`, `optimizer`, `precision`, `qat`, `step`, `teacher`,
`train`.
"""
