"""The command line: verbs over the SDK; a verb's module is imported when the verb is used, and not before."""

VALUED = frozenset({"-o", "--output", "-p", "--project", "--host"})
"""Global options that the next word belongs to."""
