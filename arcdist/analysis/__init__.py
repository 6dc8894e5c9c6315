"""Looks at runs, their scores and their data, once they are there; only launch/ imports it."""
