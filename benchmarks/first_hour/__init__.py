"""The first hour on a GPU: what is checked, run and measured, and the two files that are written (run.py)."""
