"""A study's page in optuna-dashboard: figure, note and artifacts."""
