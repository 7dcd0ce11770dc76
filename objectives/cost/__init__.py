"""What an allocation costs: the table of costs, their closed form, and independent counts that check it."""
