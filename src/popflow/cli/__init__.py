"""The command line, made from the registry."""
