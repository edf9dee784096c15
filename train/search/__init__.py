"""The search for an activation: candidates and their children, their ranking, reports, and the three gates."""
