"""Before a run starts: its checks, and the plan with all that it reads."""
