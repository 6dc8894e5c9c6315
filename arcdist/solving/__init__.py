"""Puzzles answered by trained models, and scored as the benchmark does."""
