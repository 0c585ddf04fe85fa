"""Evaluation: losses by source, video metrics, controllability."""
