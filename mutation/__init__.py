"""Mutants: the sources with one small mistake each, which the tests must find. Run by `make mutants`."""
