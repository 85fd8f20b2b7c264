"""Experiments as commands: the slides' rows, the deck's claims, and benchmarks of search and training.

Others use `claims.lab`, `claims.page`, `claims.run`, `search_bench.comparison`, `search_bench.page`,
`search_bench.run`, `search_bench.tables`, `search_bench.tabulate`, `slides.deck`, `slides.page`, `slides.run`,
`slides.summary`, `train_bench.anytime`, `train_bench.page`, `train_bench.run`.
"""
