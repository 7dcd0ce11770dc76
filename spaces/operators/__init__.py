"""The ways to make a branch smaller, one file each; `registry` lists them."""
