"""Rewards: one file per kind, each giving one number for each reply of a rollout."""
