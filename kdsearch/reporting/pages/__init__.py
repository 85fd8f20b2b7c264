"""HTML, Markdown and other texts made of a study's data."""
