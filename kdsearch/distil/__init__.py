"""Distillation: the loss, the one epoch loop, and the teacher."""
