"""Run the slide deck's rows by the deck's own recipes and compare the results with the published figures."""
