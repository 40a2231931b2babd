"""`distill-tune sweep`: a run with several settings, compared by a held-out figure."""
