"""The door for others: HTTP, watches and streams over a unix socket."""
