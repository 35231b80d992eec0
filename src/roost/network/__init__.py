"""How guests reach the world and the world reaches them."""
