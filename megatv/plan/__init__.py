"""The planner: what a run holds, sends and takes on a cluster, before anyone rents it."""
