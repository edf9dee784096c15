"""Records: the directory of a run, and the rows, events and samples in it."""
