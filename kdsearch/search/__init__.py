"""The search: space, anchors, sampling, trials, budgets, studies, workers, confirmation."""
