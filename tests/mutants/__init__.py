"""The tests, tested: the code is broken on purpose, one place at a time, and a test must turn red.

`python -m mutants` (with tests/ on the path; `make mutants` does it) copies the repository, and breaks a fresh copy for
each entry of `breakages`. What is broken there is one promise each: the tests named with it are the ones that keep it.
"""
