"""The ``fajma`` command: the only place that joins all the parts."""
