"""The SDK over HTTP: one sans-I/O core, a synchronous and an asynchronous face."""
