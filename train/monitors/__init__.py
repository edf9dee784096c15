"""What watches a training run, measures its weights, scores it, and acts on what is seen."""
