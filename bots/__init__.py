"""Bots speak in rooms under their own Matrix accounts."""
