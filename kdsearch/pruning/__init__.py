"""ParetoPruner, for any multi-objective Optuna study; needs optuna, numpy and `kdsearch.{pareto,records,errors}`.

Others use `forecast`, `history`, `pruner`, `scale`.
"""
