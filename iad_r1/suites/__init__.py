"""Evaluations in the files of other suites."""
