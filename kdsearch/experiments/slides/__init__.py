"""The slide deck's rows, run by the deck's own recipes, and what was published beside what is measured."""
