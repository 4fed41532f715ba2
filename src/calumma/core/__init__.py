"""Frozen values, protocols, errors and random numbers shared by every room. Imports neither TVM nor torch."""
