"""The board: a store of all runs, what reads their directories, and the server that shows them as they go on."""
