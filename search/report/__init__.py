"""The page of a run and its pictures: the data that they show, and how they are drawn."""
