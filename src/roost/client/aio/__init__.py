"""The SDK's verbs, written once as coroutines; `roost.client.derive` makes the blocking face of them."""
