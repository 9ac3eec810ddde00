"""Classification of whole data sets on a Ray cluster, without a server."""
