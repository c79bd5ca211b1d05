"""The command `generate`: options -> one run of a pipeline -> a file."""
