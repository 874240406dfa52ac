"""Equations of the baselines against NumPy, and a hundred steps of each on stand-ins."""
