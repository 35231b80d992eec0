"""The SDK over HTTP. The wire is in protocol, websocket and sse (no I/O); verbs are written once in aio and derived into blocking."""
