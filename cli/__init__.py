"""Command-line tools: one click command a file."""
