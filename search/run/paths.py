"""Which options hold paths, and how those lead to the same files from any folder and after a run was moved."""
