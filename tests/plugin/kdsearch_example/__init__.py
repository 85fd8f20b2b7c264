"""A student family and a data set for kdsearch."""
