"""Online LPM at work: the cache of a stream and its chunk step, scanned or one at a time."""
