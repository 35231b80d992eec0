"""The command line: the verbs a person types, through the SDK."""
