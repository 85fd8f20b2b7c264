"""From an Optuna storage to plain data, figures and one HTML page; neither torch nor the search is needed."""
