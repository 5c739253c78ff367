"""Shared by several tests: oracles, processes, networks, images, bad files."""
