"""Plotly figures of a study: data gathered first, then drawn."""
