"""``python -m console`` is the ``fajma`` command."""

from console.main import main

main()
