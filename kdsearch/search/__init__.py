"""The search: space, anchors, sampling, trials, budgets, studies, workers, confirmation.

Others use `confirm`, `definition`, `estimate`, `plan`, `retrain`, `run_options`, `sampling.proposals`,
`sampling.samplers`, `space`, `study`, `weights`, `workshop`.
"""
