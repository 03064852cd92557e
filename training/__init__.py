"""Draws pictures, trains the bundled checkpoint on them and scores it. Notebooks never import this package."""
