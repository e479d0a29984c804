"""Comparisons that produce the numbers in the README; each calls the scripts by command line."""
