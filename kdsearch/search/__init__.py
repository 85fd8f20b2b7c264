"""The search: space, anchors, sampling, trials, budgets, studies, workers, confirmation.

Others use `budget`, `confirm`, `definition`, `estimate`, `plan`, `resuming`, `retrain`, `run_options`,
`sampling.proposals`, `sampling.samplers`, `space`, `study`, `weights`, `workshop`.
"""
