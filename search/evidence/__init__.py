"""What the search split can tell of trials: errors with intervals, ties, picks, and when a search is done."""
