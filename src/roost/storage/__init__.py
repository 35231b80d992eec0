"""Where bytes live: images, their formats, and how they are built and fetched."""
