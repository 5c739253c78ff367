"""From a trained network to files that ship. Importing this package imports no MindSpore; its modules may."""
