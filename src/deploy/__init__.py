"""From a trained network to files that ship. Importing this package imports no MindSpore; some of its modules do."""
