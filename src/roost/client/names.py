"""Names for machines that were given none: pleasant to read, easy to say, rarely twice."""

from __future__ import annotations

import secrets

_QUALITIES = (
    "amber", "azure", "brave", "breezy", "bright", "calm", "clever", "copper", "coral", "cosy", "crisp", "dapper",
    "eager", "early", "fair", "fleet", "fluent", "gentle", "glad", "golden", "hardy", "hazel", "honest", "humble",
    "ivory", "jolly", "keen", "kind", "lively", "loyal", "lucid", "lunar", "mellow", "merry", "mild", "misty", "modest",
    "mossy", "neat", "nimble", "noble", "olive", "opal", "patient", "pearl", "placid", "plucky", "polite", "proud",
    "quick", "quiet", "rapid", "ready", "rosy", "royal", "rustic", "sage", "sandy", "serene", "silver", "sincere",
    "sleek", "smart", "snowy", "solar", "spry", "steady", "still", "sunny", "supple", "swift", "tidy", "tranquil",
    "true", "upbeat", "velvet", "verdant", "vivid", "warm", "wise", "witty", "zesty",
)  # fmt: skip
_BIRDS = (
    "albatross", "avocet", "bittern", "blackbird", "bluetit", "bunting", "bustard", "buzzard", "chaffinch", "condor",
    "coot", "cormorant", "crane", "crossbill", "cuckoo", "curlew", "dipper", "dove", "dunlin", "dunnock", "egret",
    "eider", "falcon", "fieldfare", "finch", "flamingo", "gannet", "godwit", "goldcrest", "goose", "goshawk", "grebe",
    "grouse", "gull", "harrier", "heron", "hobby", "hoopoe", "ibis", "jackdaw", "jay", "kestrel", "kingfisher", "kite",
    "kittiwake", "knot", "lapwing", "lark", "linnet", "magpie", "mallard", "martin", "merlin", "moorhen", "nightjar",
    "nuthatch", "oriole", "osprey", "ouzel", "owl", "oystercatcher", "partridge", "pelican", "petrel", "pheasant",
    "pintail", "pipit", "plover", "pochard", "puffin", "quail", "rail", "raven", "redpoll", "redstart", "robin", "rook",
    "ruff", "sanderling", "shag", "shrike", "siskin", "skua", "skylark", "snipe", "sparrow", "starling", "stilt",
    "stork", "swallow", "swan", "swift", "tern", "thrush", "treecreeper", "turnstone", "wagtail", "warbler", "waxwing",
    "wheatear", "whimbrel", "wigeon", "woodcock", "wren",
)  # fmt: skip


def pleasant() -> str:
    """A name such as "mellow-heron": one of some ten thousand."""
    return f"{secrets.choice(_QUALITIES)}-{secrets.choice(_BIRDS)}"
