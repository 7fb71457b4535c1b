"""Numbers from numbers: entropies, indices, intervals and tests. numpy in, numpy out; no torch."""
