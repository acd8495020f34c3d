"""From a torch network to a bundle: the float graph, its passes and what is written."""
