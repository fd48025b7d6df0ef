//! What the planner makes of every read, on a log of a realistic size.
