"""ParetoPruner, for any multi-objective Optuna study; needs optuna, numpy and `kdsearch.pareto` only.

Others use `forecast`, `history`, `pruner`, `scale`.
"""
