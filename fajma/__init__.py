"""The vocabulary that every part of FAJMA shares. It imports none of the other parts."""

__version__ = "0.1.0"
