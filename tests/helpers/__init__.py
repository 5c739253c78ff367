"""What several tests share: oracles, processes, networks, images, bad files."""
