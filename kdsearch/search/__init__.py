"""The search: space, anchors, pruner, one trial, the study."""
