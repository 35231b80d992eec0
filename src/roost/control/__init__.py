"""The reconcilers: one loop, one file per kind; observe, plan, act."""
