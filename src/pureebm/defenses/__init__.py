"""Baselines that act while a classifier is trained. One defense is one file; none knows the loop that calls it."""
