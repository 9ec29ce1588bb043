"""Environments: what a policy talks with over several turns, and tools that it calls."""
