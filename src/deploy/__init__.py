"""Export of trained networks to files. Importing this package does not import MindSpore; some of its modules do."""
