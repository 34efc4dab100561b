"""Activation statistics: what each site's input looked like on a data set."""
