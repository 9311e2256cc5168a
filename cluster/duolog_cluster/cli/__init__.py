"""The verbs of the `duolog` command, one module each with `run(words) -> exit status`."""
