"""Where trials run: in this process, in Ray actors or on Ray Tune; `create` chooses."""
