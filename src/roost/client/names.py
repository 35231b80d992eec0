"""Names for machines: pleasant ones for those that were given none, and numbers where there are many."""

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


def numbered(name: str, count: int) -> list[str]:
    """The names of `count` machines called `name`: itself, or NAME-1, NAME-2, ... when there are several."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def after(parent: str) -> str:
    """A name for a copy of `parent`, such as "web-mellow-heron"; short enough to be numbered."""
    return f"{parent.partition('.')[0][:34].rstrip('-')}-{pleasant()}"
