"""System virtual machines: from a wish to a jailed QEMU that answers."""
