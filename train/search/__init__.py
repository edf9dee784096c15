"""The search for an activation: candidates and their children, their ranking, and reports."""
