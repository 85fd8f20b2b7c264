"""ParetoPruner, for any Optuna study of several objectives; needs optuna, numpy and `kdsearch.pareto` only."""
