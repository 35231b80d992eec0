"""The SDK's blocking face: every module here but `wait` is derived from roost.client.aio by `python -m roost.client.derive`."""
