"""Where named pieces of work are done: in this process, in forked ones, or on a Ray cluster."""
