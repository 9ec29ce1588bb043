"""A finished policy for people and programs: the commands sample, chat and serve."""
