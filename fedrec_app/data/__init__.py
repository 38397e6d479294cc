"""From raw interactions to the cohort of a node."""
