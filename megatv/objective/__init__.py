"""Objectives: losses by training stage, returned as sums and counts."""
