"""Calumma inside other tools, and theirs inside calumma."""
