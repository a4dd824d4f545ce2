"""norms: the norms of embedding vectors and the parameters of norm layers, for seven families and the rest."""
