"""DVC's experiments seen from outside: run in a loop, linked to their tracked runs, held against committed figures."""
