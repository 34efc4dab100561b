"""Opens any checkpoint or adapter and finds its sites: the matrices that may be edited."""
