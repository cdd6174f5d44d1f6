"""Bridges bring measurements from outside into the readings log."""
