"""What a run leaves for others to read: its directory, and the rows, events and samples in it."""
