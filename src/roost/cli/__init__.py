"""The command line: verbs over the SDK; a verb's module is imported when the verb is used, and not before."""
