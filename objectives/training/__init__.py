"""Fine-tunes: the short one of every trial and the long one before an export, and how they outlive a kill."""
