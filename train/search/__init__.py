"""The search for an activation: candidates and their children, and what their measurements say."""
